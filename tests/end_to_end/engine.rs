//! The program under test: started, asked, stopped and killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary that this build made.
pub fn binary() -> PathBuf {
    let path = std::env::current_exe().unwrap();
    let path = path.parent().unwrap().parent().unwrap().join("ratemill");
    assert!(path.exists(), "{} is not there: run tests/run.sh, which builds it", path.display());
    path
}

/// Runs a command to its end.
pub fn ratemill(arguments: &[&str], environment: &[(String, String)]) -> Output {
    Command::new(binary()).args(arguments).envs(environment.iter().cloned()).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must succeed; returns its stdout.
pub fn ok(arguments: &[&str]) -> String {
    ok_with(arguments, &[])
}

/// The same with environment variables.
pub fn ok_with(arguments: &[&str], environment: &[(String, String)]) -> String {
    let output = ratemill(arguments, environment);
    assert!(output.status.success(), "ratemill {arguments:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The rows of a query, each as its CSV line.
pub fn sql(folder: &Path, query: &str) -> Vec<String> {
    sql_with(folder, query, &[])
}

/// The same with environment variables.
pub fn sql_with(folder: &Path, query: &str, environment: &[(String, String)]) -> Vec<String> {
    let text = ok_with(&["sql", "-C", folder.to_str().unwrap(), "-c", query, "--format", "csv"], environment);
    text.lines().skip(1).map(str::to_owned).collect()
}

/// A live engine; killed when it is dropped.
pub struct Engine {
    child: Child,
    pub address: String,
}

impl Engine {
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    pub fn start_with(folder: &Path, environment: &[(String, String)]) -> Self {
        let engine = Self::try_start(Command::new(binary()), folder, environment).unwrap_or_else(|status| {
            let log = std::fs::read_to_string(folder.join("engine.stderr")).unwrap_or_default();
            panic!("the engine did not start: {status}\n{log}");
        });
        wait("the engine is ready", || engine.get("/readyz").0 == 200);
        engine
    }

    /// Starts it by this command; when it ends before it listens, returns how.
    pub fn try_start(mut command: Command, folder: &Path, environment: &[(String, String)]) -> Result<Self, ExitStatus> {
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("engine.stderr")).unwrap();
        let mut child = command
            .args(["run", "-C", folder.to_str().unwrap(), "--log", "info"])
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        match line.trim().strip_prefix("listening http://") {
            Some(address) => Ok(Self { child, address: address.to_owned() }),
            None => Err(child.wait().unwrap()),
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it ends.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Sends it a signal, like `STOP`.
    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap().success());
    }

    /// As a power cut would, but for what the operating system holds.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop and returns how long it took.
    pub fn stop(mut self) -> Duration {
        let begun = Instant::now();
        self.signal("TERM");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the engine ended with {status}");
        begun.elapsed()
    }

    /// Has it read its project again.
    pub fn hang_up(&self) {
        assert!(Command::new("kill").args(["-HUP", &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        try_request(&self.address, "GET", path, &[], b"").unwrap_or((0, String::new()))
    }

    pub fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        try_request(&self.address, "POST", "/v1/events", headers, body).unwrap()
    }

    /// Sends CloudEvents as a batch; they must be answered with 200.
    pub fn send(&self, events: &[serde_json::Value]) -> serde_json::Value {
        let body = serde_json::to_vec(events).unwrap();
        let (status, answer) = self.post(&[("content-type", "application/cloudevents-batch+json")], &body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One HTTP call; `None` when the connection fails.
pub fn try_request(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: ratemill\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    // The server may answer and close before it has read a body that is too large.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

/// Writes a line that is seen although the test succeeds.
pub fn report(line: &str) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

/// Waits until something is so, for at most a minute and a half.
pub fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(90), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
