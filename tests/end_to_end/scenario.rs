//! Golden scenarios (`tests/scenarios/NAME`): rules, reference data, usage in parts, and the net charges that a person
//! worked out. And a run of one of them with a live engine that may die at any time.
//!
//! All usage is of 2040, so that windows close by the watermark alone, whatever the clock says.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::{Engine, binary, ratemill, try_request};
use crate::project::{Project, lines};

/// Every identity of charges with what it nets to, in windows that end by `UNTIL`.
const NET: &str = "SELECT rule, window_start, customer_id, contract_id, item, currency, sum(quantity), sum(amount) FROM charges
    WHERE window_end <= 'UNTIL' GROUP BY rule, window_start, customer_id, contract_id, item, currency HAVING sum(amount) <> 0
    ORDER BY 1, 2, 3, 4";

/// How a part reaches the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Http,
    File,
}

/// Usage that comes together, and what follows it.
#[derive(Debug, Clone)]
pub struct Part {
    pub by: By,
    pub events: Vec<Value>,
    /// Records that it adds to the log.
    pub records: i64,
    /// A month that is closed after it.
    pub close: Option<String>,
}

/// A golden scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: String,
    pub folder: PathBuf,
    pub parts: Vec<Part>,
    /// The end of what is compared.
    pub until: String,
    pub expected: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

impl Scenario {
    pub fn all() -> Vec<Self> {
        let mut names: Vec<String> = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.iter().map(|name| Self::load(name)).collect()
    }

    pub fn load(name: &str) -> Self {
        let folder = root().join(name);
        let mut part = Part { by: By::Http, events: Vec::new(), records: 0, close: None };
        let (mut parts, mut until) = (Vec::new(), String::new());
        for line in fs::read_to_string(folder.join("usage.txt")).unwrap().lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["part", by] => {
                    let by = if by == "file" { By::File } else { By::Http };
                    parts.push(std::mem::replace(&mut part, Part { by, events: Vec::new(), records: 0, close: None }));
                }
                ["close", month] => part.close = Some(month.to_owned()),
                ["until", day] => until = format!("{day}T00:00:00Z"),
                [kind, ..] => {
                    part.records += i64::from(kind != "again");
                    part.events.push(event(&words));
                }
                [] => {}
            }
        }
        parts.push(part);
        let expected = fs::read_to_string(folder.join("expected.csv")).unwrap().lines().map(str::to_owned).collect();
        Self { name: name.to_owned(), folder, parts, until, expected }
    }

    /// A project with its rules and reference data; `toml` comes on top of what all runs have.
    pub fn project(&self, epoch: &str, toml: &str) -> Project {
        let project = Project::bare();
        for part in ["rules", "reference"] {
            for entry in fs::read_dir(self.folder.join(part)).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("{part}/{}", path.file_name().unwrap().to_str().unwrap());
                project.write_bytes(&name, &fs::read(path).unwrap());
            }
        }
        project.write(
            "ratemill.toml",
            &format!(
                "[epoch]\ninterval = \"100 milliseconds\"\nidle = \"0 seconds\"\ncheckpoint = \"0 seconds\"\n{epoch}[lake]\nlease = \"1 second\"\n\
                 [http]\nlisten = \"127.0.0.1:0\"\n[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"0 seconds\"\npoll = \"50 milliseconds\"\n{toml}\
                 {}future_skew = \"36500 days\"\n",
                if toml.contains("[limits]") { "" } else { "[limits]\n" }
            ),
        );
        project
    }

    pub fn events(&self) -> Vec<Value> {
        self.parts.iter().flat_map(|part| part.events.clone()).collect()
    }

    /// Rates all events by one command; says why it fails.
    pub fn rate(&self, project: &Project, environment: &[(String, String)]) -> Result<(), String> {
        let usage = project.write("usage.ndjson", &lines(&self.events()));
        let arguments = ["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--to", &self.until[..10]];
        succeeds(&arguments, environment).map(drop)
    }

    /// Whether every event that was acknowledged as usage is there once, and charges are what they should be.
    pub fn books(&self, project: &Project) -> Result<(), String> {
        let query = |query: &str| -> Result<Vec<String>, String> {
            let text = succeeds(&["sql", "-C", project.text(), "-c", query, "--format", "csv"], &[])?;
            Ok(text.lines().skip(1).map(str::to_owned).collect())
        };
        let (ids, net) = (query("SELECT id FROM usage ORDER BY id")?, query(&NET.replace("UNTIL", &self.until))?);
        if ids != self.usage_ids() {
            return Err(format!("usage is {ids:?}, not {:?}", self.usage_ids()));
        }
        if net == self.expected { Ok(()) } else { Err(format!("charges are {net:#?}, not {:#?}", self.expected)) }
    }

    pub fn assert_books(&self, project: &Project, what: &str) {
        if let Err(wrong) = self.books(project) {
            panic!("{} {what}: {wrong}", self.name);
        }
    }

    /// Ids of usage that is accepted, sorted.
    pub fn usage_ids(&self) -> Vec<String> {
        let usage = |event: &Value| !event["type"].as_str().unwrap().starts_with("ratemill.") && !event["data"]["quantity"].is_null();
        let mut ids: Vec<String> =
            self.events().iter().filter(|event| usage(event)).map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

/// The output of a command, or what it said when it failed.
pub fn succeeds(arguments: &[&str], environment: &[(String, String)]) -> Result<String, String> {
    let output = ratemill(arguments, environment);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(format!("{arguments:?}: {stderr}")) }
}

fn event(words: &[&str]) -> Value {
    let usage = |meter: &str, id: &str, subject: &str, time: &str, quantity: &str| {
        let data = if quantity == "-" { json!({}) } else { json!({"quantity": quantity}) };
        json!({"specversion": "1.0", "source": "test", "id": id, "type": meter, "subject": subject, "time": time, "data": data})
    };
    let change =
        |kind: &str, id: &str, data: Value| json!({"specversion": "1.0", "source": "office", "id": id, "type": kind, "data": data});
    let meter = |id: &str| if id.starts_with('c') { "call" } else { "kwh" };
    match *words {
        ["void", id, target] => change("ratemill.void", id, json!({"target": {"source": "test", "id": target}})),
        ["amend", id, target, version, subject, time, quantity] => {
            let version: u64 = version.parse().unwrap();
            let event = usage(meter(target), target, subject, time, quantity);
            change("ratemill.amend", id, json!({"target": {"source": "test", "id": target}, "version": version, "event": event}))
        }
        ["again", id, subject, time, quantity] => usage(meter(id), id, subject, time, quantity),
        [kind, id, subject, time, quantity] => usage(kind, id, subject, time, quantity),
        _ => panic!("not a line of a scenario: {words:?}"),
    }
}

/// A live engine that is started again whenever it died of what the test does to it.
pub struct Run<'p> {
    project: &'p Project,
    command: Box<dyn Fn() -> Command + 'p>,
    engine: Option<Engine>,
    /// What makes it die; gone once it did.
    deadly: Vec<(String, String)>,
    /// The file that it waits for where it is to be stopped instead.
    go: Option<PathBuf>,
    /// How often it died, or was stopped.
    pub deaths: usize,
    /// Position of the log that everything sent has come to.
    position: i64,
    files: usize,
}

impl<'p> Run<'p> {
    pub fn new(project: &'p Project, deadly: &[(&str, String)]) -> Self {
        let deadly = deadly.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Self { project, command: Box::new(|| Command::new(binary())), engine: None, deadly, go: None, deaths: 0, position: 0, files: 0 }
    }

    /// Starts the engine by another command.
    pub fn by(self, command: impl Fn() -> Command + 'p) -> Self {
        Self { command: Box::new(command), ..self }
    }

    /// Stops the engine once it has come to this failpoint.
    pub fn stopped_at(self, point: &str) -> Self {
        let go = self.project.path().join("go");
        let deadly = vec![("RATEMILL_FAIL_AT".to_owned(), format!("{point}:{}", go.display()))];
        Self { deadly, go: Some(go), ..self }
    }

    /// The whole scenario, part by part, each in the lake before the next comes.
    pub fn play(mut self, scenario: &Scenario) -> usize {
        for part in &scenario.parts {
            self.deliver(part);
            self.settle();
            if let Some(month) = &part.close {
                self.close(month);
            }
        }
        self.stop();
        self.deaths
    }

    pub fn deliver(&mut self, part: &Part) {
        match part.by {
            By::Http => self.send(&part.events),
            By::File => {
                self.project.drop_file(&format!("drop/{}.ndjson", self.files), lines(&part.events).as_bytes());
                self.files += 1;
                // Its claim is a record, too.
                self.position += 1;
            }
        }
        self.position += part.records;
    }

    /// Sends a batch until it is acknowledged.
    pub fn send(&mut self, events: &[Value]) {
        let body = serde_json::to_vec(events).unwrap();
        let headers = [("content-type", "application/cloudevents-batch+json")];
        let begun = Instant::now();
        loop {
            let address = self.engine().address.clone();
            match try_request(&address, "POST", "/v1/events", &headers, &body) {
                Some((200, _)) => return,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "not acknowledged for too long");
        }
    }

    /// The engine, which is started if it is not there.
    pub fn engine(&mut self) -> &Engine {
        self.stop_where_it_waits();
        loop {
            let ended = match &mut self.engine {
                None => match Engine::try_start((self.command)(), self.project.path(), &self.deadly) {
                    Ok(engine) => {
                        self.engine = Some(engine);
                        continue;
                    }
                    Err(status) => Some(status),
                },
                Some(engine) => engine.ended(),
            };
            match ended {
                None => break,
                Some(status) => self.died(status),
            }
        }
        self.engine.as_ref().unwrap()
    }

    fn stop_where_it_waits(&mut self) {
        let (Some(go), Some(engine)) = (&self.go, &mut self.engine) else { return };
        let log = fs::read_to_string(self.project.path().join("engine.stderr")).unwrap_or_default();
        if !log.contains("waiting at failpoint") {
            return;
        }
        engine.signal("TERM");
        // It is told to stop before it goes on.
        std::thread::sleep(Duration::from_millis(200));
        fs::write(go, "").unwrap();
        let status = engine.wait_for_end();
        assert!(status.success(), "ended with {status}\n{log}");
        (self.go, self.engine) = (None, None);
        self.deadly.clear();
        self.deaths += 1;
    }

    fn died(&mut self, status: ExitStatus) {
        self.engine = None;
        self.deaths += 1;
        let log = || fs::read_to_string(self.project.path().join("engine.stderr")).unwrap_or_default();
        assert!(!self.deadly.is_empty() && status.signal() == Some(6), "ended with {status}\n{}", log());
        self.deadly.clear();
    }

    /// Waits until the lake has everything, and no epoch is under way.
    pub fn settle(&mut self) {
        let begun = Instant::now();
        let epochs = self.project.path().join("lake/epochs");
        while settled_at(&epochs) < Some(self.position) {
            self.engine();
            assert!(begun.elapsed() < Duration::from_secs(90), "{:?} of {}", settled_at(&epochs), self.position);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn close(&mut self, month: &str) {
        self.stop();
        loop {
            // A command is not stopped, so that it must not wait.
            let deadly = if self.go.is_some() { &[] } else { self.deadly.as_slice() };
            let output = ratemill(&["period", "close", month, "-C", self.project.text()], deadly);
            if output.status.success() {
                return;
            }
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.signal(), Some(6), "{stderr}");
            self.died(output.status);
        }
    }

    pub fn stop(&mut self) {
        self.stop_where_it_waits();
        // It has not come to the point so far, and is to end all the same.
        self.go.iter().for_each(|go| fs::write(go, "").unwrap());
        if let Some(mut engine) = self.engine.take() {
            engine.signal("TERM");
            let status = engine.wait_for_end();
            if !status.success() {
                self.died(status);
            }
        }
    }
}

/// The position that the last epoch has come to; `None` while one is under way.
pub fn settled_at(epochs: &Path) -> Option<i64> {
    let mut names: Vec<String> = fs::read_dir(epochs).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".json"));
    names.sort();
    let last = names.last().filter(|name| name.ends_with(".manifest.json"))?;
    let done = last.replace(".manifest.", ".done.");
    let completion: Value = serde_json::from_slice(&fs::read(epochs.join(done)).ok()?).ok()?;
    completion["state"]["position"].as_i64()
}

/// What every epoch was to do, as its manifest says.
pub fn manifests(project: &Project) -> Vec<Value> {
    let mut paths: Vec<PathBuf> = fs::read_dir(project.path().join("lake/epochs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(".manifest.json"));
    paths.sort();
    let read = |path: &PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let what =
        |manifest: &Value| json!([manifest["epoch"], manifest["from"], manifest["to"], manifest["tasks"], manifest["closing"]["period"]]);
    paths.iter().map(read).map(|manifest| what(&manifest)).collect()
}
