//! A small project for tests: electricity at a tiered price, customers by contract.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::engine::wait;

/// Where usage of a test lies: September 2026.
pub const RULE: &str = "CREATE MATERIALIZED VIEW energy
WITH (window = 'month', timezone = 'UTC', grace = '1 day', effective_from = '2026-09-01')
AS
SELECT c.customer_id, 'Energy' AS item, sum(u.quantity) AS quantity, 'kWh' AS unit,
       graduated(sum(u.quantity), p.tiers) AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan
WHERE u.meter = 'kwh'
GROUP BY c.customer_id, c.currency, p.tiers
";

/// What each contract used, by its own billing period; from January 2026.
pub const PERIOD_RULE: &str = "CREATE MATERIALIZED VIEW energy WITH (window = 'billing_period', effective_from = '2026-01-01') AS
SELECT c.customer_id, c.contract_id, 'Energy' AS item, sum(u.quantity) AS amount, c.currency
FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'kwh' GROUP BY c.customer_id, c.contract_id, c.currency
";

/// A project in a temporary folder, which goes away with it.
pub struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    /// With this `ratemill.toml` beside an epoch every 200 ms.
    pub fn new(toml: &str) -> Self {
        let project = Self::bare();
        let epoch = if toml.contains("[epoch]") { "" } else { "[epoch]\ninterval = \"200 milliseconds\"\n" };
        project.write("ratemill.toml", &format!("{epoch}{toml}"));
        project.write("rules/energy.sql", RULE);
        project.write("reference/contracts.toml", "key = [\"subject\"]\n[columns]\nsubject = \"text\"\ncustomer_id = \"text\"\nplan = \"text\"\ncurrency = \"text\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n");
        let contracts: String = (0..10).map(|n| format!("m{n},cust-{n},home,EUR,2026-01-01,\n")).collect();
        project.write("reference/contracts.csv", &format!("subject,customer_id,plan,currency,valid_from,valid_to\n{contracts}"));
        project.write(
            "reference/prices.toml",
            "key = [\"plan\"]\n[columns]\nplan = \"text\"\nup_to = \"decimal?\"\nunit_price = \"decimal\"\nflat_fee = \"decimal\"\n",
        );
        project.write("reference/prices.csv", "plan,up_to,unit_price,flat_fee\nhome,100,0.30,5\nhome,,0.25,0\n");
        project
    }

    /// An empty folder.
    pub fn bare() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// Contracts with billing periods of their own: rows of `subject,customer_id,contract_id,plan,currency,anchor_day,valid_from,valid_to`.
    pub fn contracts(&self, rows: &str) {
        self.write(
            "reference/contracts.toml",
            "key = [\"subject\"]\n[columns]\nsubject = \"text\"\ncustomer_id = \"text\"\ncontract_id = \"text\"\nplan = \"text\"\ncurrency = \"text\"\nanchor_day = \"integer\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n",
        );
        let header = "subject,customer_id,contract_id,plan,currency,anchor_day,valid_from,valid_to";
        self.write("reference/contracts.csv", &format!("{header}\n{rows}"));
    }

    /// With an HTTP listener on a free port.
    pub fn with_http() -> Self {
        Self::new("[http]\nlisten = \"127.0.0.1:0\"\n")
    }

    /// Files of the index of event ids with this extension.
    pub fn files_of_ids(&self, extension: &str) -> Vec<PathBuf> {
        let found = std::fs::read_dir(self.path().join("log/dedup")).unwrap().map(|found| found.unwrap().path());
        found.filter(|path| path.extension().is_some_and(|other| other == extension)).collect()
    }

    /// Waits until no ids but those of the last epoch, if any, have to be loaded into memory.
    pub fn wait_until_ids_aged(&self) {
        wait("ids age", || !self.files_of_ids("aged").is_empty() && self.files_of_ids("keys").is_empty());
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        self.write_bytes(name, content.as_bytes())
    }

    pub fn write_bytes(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Puts a file into a drop as a careful sender does: under another name until it is whole.
    pub fn drop_file(&self, name: &str, content: &[u8]) {
        let temporary = self.write_bytes(&format!("{name}.tmp"), content);
        fs::rename(temporary, self.path().join(name)).unwrap();
    }
}

/// A CloudEvent of meter `kwh`.
pub fn kwh(id: &str, subject: &str, time: &str, quantity: &str) -> Value {
    json!({"specversion": "1.0", "source": "test", "id": id, "type": "kwh", "subject": subject, "time": time, "data": {"quantity": quantity}})
}

/// `count` events of September over ten customers, always the same.
pub fn september(count: usize) -> Vec<Value> {
    (0..count)
        .map(|n| {
            let time = format!("2026-09-{:02}T{:02}:{:02}:{:02}Z", n % 28 + 1, n % 24, n % 60, n / 60 % 60);
            kwh(&format!("e{n}"), &format!("m{}", n % 10), &time, &format!("{}.{:03}", n % 7, n % 1000))
        })
        .collect()
}

/// One JSON object a line.
pub fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}
