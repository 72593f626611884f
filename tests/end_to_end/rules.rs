//! What the rule language promises, through the whole engine: charges of charges, contracts' own periods, what was before
//! the window, each with late usage, and each equal to a rating of everything at once.

use serde_json::{Value, json};

use crate::engine::{ok, ratemill, sql};
use crate::project::{PERIOD_RULE, Project, kwh, lines};

fn event(meter: &str, id: &str, subject: &str, time: &str, quantity: &str) -> Value {
    json!({"specversion": "1.0", "source": "test", "id": id, "type": meter, "subject": subject, "time": time, "data": {"quantity": quantity}})
}

/// What is owed in the end, per identity and window.
fn net(project: &Project) -> Vec<String> {
    sql(
        project.path(),
        "SELECT rule, customer_id, coalesce(contract_id, ''), item, window_start, window_end, sum(amount) FROM charges
         GROUP BY rule, customer_id, contract_id, item, window_start, window_end HAVING sum(amount) <> 0 ORDER BY rule, customer_id, contract_id, item, window_start",
    )
}

/// Rates `usage` and then `late` in one project, all of it in another; both owe the same, which is returned.
fn in_two_steps(prepare: impl Fn(&Project), usage: &[Value], late: &[Value]) -> (Project, Vec<String>) {
    let steps = Project::new("");
    let whole = Project::new("");
    prepare(&steps);
    prepare(&whole);
    for (project, name, events) in
        [(&steps, "usage.ndjson", usage.to_vec()), (&steps, "late.ndjson", late.to_vec()), (&whole, "all.ndjson", [usage, late].concat())]
    {
        let file = project.write(name, &lines(&events));
        ok(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap(), "--close"]);
    }
    let owed = net(&steps);
    assert_eq!(owed, net(&whole));
    (steps, owed)
}

const TAX: &str = "CREATE MATERIALIZED VIEW energy_tax WITH (window = 'month', grace = '1 day', effective_from = '2026-09-01') AS
SELECT e.customer_id, 'Tax' AS item, sum(e.amount) * 0.2 AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency";

#[test]
fn a_rule_over_a_rule_follows_its_corrections_in_the_same_epoch() {
    let usage = [kwh("a", "m1", "2026-09-02T00:00:00Z", "10"), kwh("b", "m2", "2026-09-02T00:00:00Z", "10")];
    let late = [kwh("c", "m1", "2026-09-20T00:00:00Z", "100")];
    let (project, owed) = in_two_steps(
        |project| {
            project.write("rules/energy_tax.sql", TAX);
        },
        &usage,
        &late,
    );
    // 110 kWh: 100 × 0.30 + 5 + 10 × 0.25 = 37.5; 10 kWh: 8. Taxes are a fifth.
    assert_eq!(
        owed,
        [
            "energy,cust-1,,Energy,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,37.5",
            "energy,cust-2,,Energy,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,8",
            "energy_tax,cust-1,,Tax,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,7.5",
            "energy_tax,cust-2,,Tax,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,1.6",
        ]
    );
    let epochs = sql(project.path(), "SELECT DISTINCT epoch FROM charges WHERE class = 'correction'");
    assert_eq!(epochs.len(), 1, "{epochs:?}");
    // The version of the reader covers what it reads: a changed upstream is another version of both.
    let version = |project: &Project| {
        let text = ok(&["explain", "energy_tax", "-C", project.text(), "--format", "json"]);
        serde_json::from_str::<Value>(&text).unwrap()[0]["version"].clone()
    };
    let before = version(&project);
    project.write("rules/energy.sql", &crate::project::RULE.replace("'Energy'", "'Electricity'"));
    assert_ne!(before, version(&project));
}

#[test]
fn late_usage_of_a_former_version_is_rated_with_the_rules_that_it_read() {
    let project = Project::new("");
    project.write("rules/energy_tax.sql", TAX);
    let usage = project.write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "10")]));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    // Both rules change in place; late usage of September still is what September's versions make of it.
    project.write("rules/energy_tax.sql", &TAX.replace("0.2", "0.9"));
    project.write("rules/energy.sql", &crate::project::RULE.replace("graduated(sum(u.quantity), p.tiers)", "sum(u.quantity) * 100"));
    let late = project.write("late.ndjson", &lines(&[kwh("b", "m1", "2026-09-03T00:00:00Z", "10")]));
    ok(&["rate", "-C", project.text(), "--usage", late.to_str().unwrap(), "--close"]);
    // 20 × 0.30 + 5 = 11, and a fifth of it.
    assert_eq!(
        net(&project),
        [
            "energy,cust-1,,Energy,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,11",
            "energy_tax,cust-1,,Tax,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,2.2",
        ]
    );
}

#[test]
fn billing_periods_are_the_contracts_own() {
    let prepare = |project: &Project| {
        project.write(
            "reference/contracts.toml",
            "key = [\"subject\"]\n[columns]\nsubject = \"text\"\ncustomer_id = \"text\"\ncontract_id = \"text\"\nplan = \"text\"\ncurrency = \"text\"\nanchor_day = \"integer\"\ntimezone = \"text?\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n",
        );
        // m1: month ends; m2: from the 15th in New York, a stub first; m3: ends within a month.
        project.write(
            "reference/contracts.csv",
            "subject,customer_id,contract_id,plan,currency,anchor_day,timezone,valid_from,valid_to\n\
             m1,cust-1,k1,home,EUR,31,,2026-01-31,\n\
             m2,cust-2,k2,home,EUR,15,America/New_York,2026-01-20T05:00:00Z,\n\
             m3,cust-3,k3,home,EUR,1,,2026-01-01,2026-02-11\n",
        );
        project.write(
            "rules/energy.sql",
            "CREATE MATERIALIZED VIEW energy WITH (window = 'billing_period', grace = '1 day', effective_from = '2026-01-01') AS
             SELECT c.customer_id, c.contract_id, 'Energy' AS item, coalesce(sum(u.quantity), 0) + 1 AS amount, c.currency
             FROM billing_window w
             JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON c.anchor_day IS NOT NULL
             LEFT JOIN usage u ON u.subject = c.subject AND u.meter = 'kwh'
             GROUP BY c.customer_id, c.contract_id, c.currency",
        );
    };
    let usage = [
        kwh("a", "m1", "2026-02-27T23:00:00Z", "10"),
        // The period from 28 February begins here.
        kwh("b", "m1", "2026-02-28T00:00:00Z", "20"),
        kwh("c", "m2", "2026-02-15T04:59:59Z", "30"),
        kwh("d", "m2", "2026-02-15T05:00:00Z", "40"),
        kwh("e", "m3", "2026-02-10T23:59:59Z", "50"),
        // Nobody's: the contract is over.
        kwh("f", "m3", "2026-02-11T00:00:00Z", "60"),
        kwh("last", "m1", "2026-03-20T00:00:00Z", "0"),
    ];
    let late = [kwh("late", "m2", "2026-02-01T00:00:00Z", "5")];
    let (_, owed) = in_two_steps(prepare, &usage, &late);
    let of = |contract: &str| -> Vec<String> {
        owed.iter()
            .filter(|line| line.contains(&format!(",{contract},")))
            .map(|line| line.split_once("Energy,").unwrap().1.to_owned())
            .collect()
    };
    assert_eq!(
        of("k1")[..2],
        ["2026-01-31T00:00:00Z,2026-02-28T00:00:00Z,11".to_owned(), "2026-02-28T00:00:00Z,2026-03-31T00:00:00Z,21".to_owned()]
    );
    assert_eq!(
        of("k2")[..2],
        ["2026-01-20T05:00:00Z,2026-02-15T05:00:00Z,36".to_owned(), "2026-02-15T05:00:00Z,2026-03-15T04:00:00Z,41".to_owned()]
    );
    assert_eq!(of("k3"), ["2026-01-01T00:00:00Z,2026-02-01T00:00:00Z,1", "2026-02-01T00:00:00Z,2026-02-11T00:00:00Z,51"]);
}

#[test]
fn a_late_reading_corrects_the_windows_that_it_opens() {
    let prepare = |project: &Project| {
        project.write(
            "rules/energy.sql",
            "CREATE MATERIALIZED VIEW energy WITH (window = 'month', grace = '1 day', effective_from = '2026-06-01', carry = 'subject, meter', fan_out = 'allowed') AS
             WITH readings AS (
                 SELECT o.subject, o.time, o.quantity FROM opening o WHERE o.meter = 'register'
                 UNION ALL
                 SELECT u.subject, u.time, u.quantity FROM usage u WHERE u.meter = 'register'
             )
             SELECT 'cust-' || substr(r.subject, 2) AS customer_id, 'Consumption' AS item, register_usage(r.quantity, r.time) AS amount, 'EUR' AS currency
             FROM readings r GROUP BY r.subject",
        );
    };
    let reading = |id: &str, time: &str, quantity: &str| event("register", id, "m1", time, quantity);
    let usage = [
        reading("a", "2026-06-10T00:00:00Z", "100"),
        reading("b", "2026-08-10T00:00:00Z", "150"),
        reading("c", "2026-09-10T00:00:00Z", "180"),
        reading("d", "2026-11-10T00:00:00Z", "200"),
    ];
    // Belongs to June, and opens July and August.
    let late = [reading("late", "2026-06-30T00:00:00Z", "130")];
    let (project, owed) = in_two_steps(prepare, &usage, &late);
    let months: Vec<&str> = owed.iter().map(|line| line.split_once("Consumption,").unwrap().1).collect();
    assert_eq!(
        months,
        [
            "2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,30",
            "2026-08-01T00:00:00Z,2026-09-01T00:00:00Z,20",
            "2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,30",
            "2026-11-01T00:00:00Z,2026-12-01T00:00:00Z,20",
        ]
    );
    let corrected = sql(project.path(), "SELECT DISTINCT window_start FROM charges WHERE class = 'correction' ORDER BY 1");
    assert_eq!(corrected, ["2026-06-01T00:00:00Z", "2026-08-01T00:00:00Z"]);
}

#[test]
fn meters_that_nobody_reads_or_sends_are_reported() {
    let project = Project::new(
        "[[files]]\nname = \"drop\"\nurl = \"drops\"\nmapping = { meter = { constant = \"kwhh\" }, id = \"id\", subject = \"s\", time = \"t\", quantity = \"q\" }\n",
    );
    let shown = ok(&["check", project.text()]);
    assert!(shown.contains("warning[meter-unread]: meter `kwhh` of [[files]] `drop` is read by no rule"), "{shown}");
    assert!(shown.contains("no configured input sends meter `kwh`; did you mean `kwhh`?"), "{shown}");
}

#[test]
fn options_do_what_they_say() {
    // Months from the 15th, halves to the even neighbour, nothing shown before it is final.
    let rule = |emit: &str| {
        format!(
            "CREATE MATERIALIZED VIEW energy WITH (window = 'month', anchor = '15', grace = '1 day', effective_from = '2026-08-15', rounding = 'half_even', emit = '{emit}') AS
             SELECT u.subject AS customer_id, 'Energy' AS item, round_money(sum(u.quantity), 'EUR') AS amount, 'EUR' AS currency
             FROM usage u WHERE u.meter = 'kwh' GROUP BY u.subject"
        )
    };
    let usage = [
        kwh("a", "m1", "2026-09-14T23:59:59Z", "1.005"),
        kwh("b", "m1", "2026-09-15T00:00:00Z", "2.015"),
        kwh("c", "m1", "2026-10-20T00:00:00Z", "3"),
    ];
    for (emit, provisional) in [("running", true), ("final", false)] {
        let project = Project::new("");
        project.write("rules/energy.sql", &rule(emit));
        let file = project.write("usage.ndjson", &lines(&usage));
        let output = crate::engine::ratemill(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap()], &[]);
        let shown = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{shown}");
        assert_eq!(
            net(&project),
            [
                "energy,m1,,Energy,2026-08-15T00:00:00Z,2026-09-15T00:00:00Z,1",
                "energy,m1,,Energy,2026-09-15T00:00:00Z,2026-10-15T00:00:00Z,2.02",
            ]
        );
        assert_eq!(shown.contains("provisional: energy"), provisional, "{shown}");
    }
}

const LEVELS: &str = "CREATE MATERIALIZED VIEW energy WITH (window = 'month', effective_from = '2026-01-01', carry = 'subject, meter', fan_out = 'allowed') AS
    WITH levels AS (
        SELECT o.subject, o.time, o.quantity FROM opening o WHERE o.meter = 'level'
        UNION ALL
        SELECT u.subject, u.time, u.quantity FROM usage u WHERE u.meter = 'level'
    )
    SELECT l.subject AS customer_id, 'Storage' AS item, weighted(l.quantity, l.time, w.window_start, w.window_end) AS amount, 'EUR' AS currency
    FROM levels l CROSS JOIN billing_window w GROUP BY l.subject";

#[test]
fn a_late_level_reaches_windows_that_were_closed_empty_and_those_of_the_next_version() {
    let level = |id: &str, time: &str, quantity: &str| event("level", id, "m1", time, quantity);
    // January to March close without a charge; then a level of January arrives.
    let other = event("level", "x", "m2", "2026-04-10T00:00:00Z", "0");
    let (_, owed) = in_two_steps(
        |project| {
            project.write("rules/energy.sql", LEVELS);
        },
        std::slice::from_ref(&other),
        &[level("late", "2026-01-16T00:00:00Z", "10")],
    );
    // 16 days of 10 in January, 28 in February, 31 in March, 30 in April.
    let hours: Vec<&str> = owed.iter().map(|line| line.rsplit_once(',').unwrap().1).collect();
    assert_eq!(hours, ["3840", "6720", "7440", "7200"]);
    // The first version until March, the second at twice the price; both see the late level.
    let (_, owed) = in_two_steps(
        |project| {
            let dated = |options: &str, factor: &str| {
                LEVELS
                    .replace("effective_from = '2026-01-01'", options)
                    .replace("w.window_end) AS", &format!("w.window_end) * {factor} AS"))
            };
            project.write("rules/energy.sql", &dated("effective_from = '2026-01-01', effective_to = '2026-03-01'", "1"));
            project.write("rules/energy_2.sql", &dated("effective_from = '2026-03-01'", "2"));
        },
        &[level("a", "2026-01-10T00:00:00Z", "10"), level("z", "2026-05-01T00:00:00Z", "0")],
        &[level("late", "2026-01-20T00:00:00Z", "30")],
    );
    let hours: Vec<&str> = owed.iter().map(|line| line.rsplit_once(',').unwrap().1).collect();
    // 10 days of 10 and 12 days of 30; then 30 throughout.
    assert_eq!(hours, ["11040", "20160", "44640", "43200"]);
}

#[test]
fn a_late_event_of_a_meter_that_only_opening_reads_corrects() {
    let (_, owed) = in_two_steps(
        |project| {
            project.write(
                "rules/energy.sql",
                "CREATE MATERIALIZED VIEW energy WITH (window = 'month', effective_from = '2026-01-01', carry = 'subject, meter') AS
                 SELECT u.subject AS customer_id, 'Use' AS item, sum(u.quantity * o.quantity) AS amount, 'EUR' AS currency
                 FROM usage u JOIN opening o ON o.subject = u.subject AND o.meter = 'price' WHERE u.meter = 'use' GROUP BY u.subject",
            );
        },
        &[
            event("price", "p", "m1", "2026-01-10T00:00:00Z", "2"),
            event("use", "u", "m1", "2026-02-10T00:00:00Z", "10"),
            event("use", "end", "m1", "2026-03-10T00:00:00Z", "0"),
        ],
        &[event("price", "late", "m1", "2026-01-11T00:00:00Z", "5")],
    );
    assert_eq!(owed, ["energy,m1,,Use,2026-02-01T00:00:00Z,2026-03-01T00:00:00Z,50"]);
}

#[test]
fn a_contract_that_changes_after_its_period_was_published_is_not_charged_twice() {
    let project = Project::new("");
    project.contracts("m1,cust-1,k1,home,EUR,1,2026-01-01,\n");
    project.write("rules/energy.sql", PERIOD_RULE);
    let rate = |name: &str, events: &[Value]| {
        let file = project.write(name, &lines(events));
        ok(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap()]);
    };
    rate("a.ndjson", &[kwh("a", "m1", "2026-01-10T00:00:00Z", "100"), kwh("b", "m1", "2026-02-10T00:00:00Z", "1")]);
    let january = "energy,cust-1,k1,Energy,2026-01-01T00:00:00Z,2026-02-01T00:00:00Z,100";
    assert_eq!(net(&project), [january]);
    // It ended on the 20th, as was found out later; a second contract shares its period.
    project.contracts("m1,cust-1,k1,home,EUR,1,2026-01-01,2026-01-20\nm2,cust-2,k2,home,EUR,1,2026-01-01,\n");
    rate("b.ndjson", &[kwh("c", "m2", "2026-01-13T00:00:00Z", "7"), kwh("d", "m2", "2026-02-13T00:00:00Z", "0")]);
    let second = "energy,cust-2,k2,Energy,2026-01-01T00:00:00Z,2026-02-01T00:00:00Z,7";
    assert_eq!(net(&project), [january, second]);
    // Late usage of the published period still is that period's.
    rate("c.ndjson", &[kwh("e", "m1", "2026-01-11T00:00:00Z", "5")]);
    assert_eq!(net(&project), [january.replace(",100", ",105"), second.to_owned()]);
    // Asked for, the old period is taken back and the new one charged; and once only.
    for _ in 0..2 {
        ok(&["rate", "-C", project.text(), "--re-rate", "--from", "2026-01-01", "--to", "2026-02-01"]);
        assert_eq!(net(&project), [january.replace("02-01T", "01-20T").replace(",100", ",105"), second.to_owned()]);
    }
}

#[test]
fn a_subject_that_moves_to_another_contract_is_not_charged_under_both() {
    let project = Project::new("");
    project.contracts("m1,a,k1,home,EUR,1,2026-01-01,\nm2,a,k1,home,EUR,1,2026-01-01,\n");
    project.write("rules/energy.sql", PERIOD_RULE);
    let rate = |name: &str, events: &[Value]| {
        let file = project.write(name, &lines(events));
        let output = ratemill(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap()], &[]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}");
        told
    };
    let re_rate = |from: &str, to: &str| ok(&["rate", "-C", project.text(), "--re-rate", "--from", from, "--to", to]);
    rate(
        "a.ndjson",
        &[
            kwh("a", "m1", "2026-01-10T00:00:00Z", "100"),
            kwh("b", "m1", "2026-01-20T00:00:00Z", "50"),
            kwh("c", "m2", "2026-01-20T00:00:00Z", "3"),
            kwh("d", "m2", "2026-02-01T00:00:00Z", "0"),
        ],
    );
    let of = |contract: &str, customer: &str, bounds: &str, amount: i32| format!("energy,{customer},{contract},Energy,{bounds},{amount}");
    let january = "2026-01-01T00:00:00Z,2026-02-01T00:00:00Z";
    assert_eq!(net(&project), [of("k1", "a", january, 153)]);

    // m1 went to another contract on the 15th, as is found out later. The published period keeps it, and its late usage.
    project.contracts("m1,a,k1,home,EUR,1,2026-01-01,2026-01-15\nm2,a,k1,home,EUR,1,2026-01-01,\nm1,b,k2,home,EUR,1,2026-01-15,\n");
    let told = rate("b.ndjson", &[kwh("e", "m2", "2026-02-13T00:00:00Z", "0"), kwh("f", "m1", "2026-01-21T00:00:00Z", "1")]);
    assert_eq!(net(&project), [of("k1", "a", january, 154)]);
    assert!(told.contains("m1") && told.contains("another contract"), "{told}");
    let moved = [of("k1", "a", january, 103), of("k2", "b", "2026-01-15T00:00:00Z,2026-02-01T00:00:00Z", 51)];
    // The new contract's part alone cannot be rated: the old one's would stay.
    re_rate("2026-01-15", "2026-02-01");
    assert_eq!(net(&project), [of("k1", "a", january, 154)]);
    for _ in 0..2 {
        re_rate("2026-01-01", "2026-02-01");
        assert_eq!(net(&project), moved);
    }

    // The new contract gets another name: its charges wait under the old one, and move with it.
    project.contracts("m1,a,k1,home,EUR,1,2026-01-01,2026-01-15\nm2,a,k1,home,EUR,1,2026-01-01,\nm1,b,k9,home,EUR,1,2026-01-15,\n");
    rate("c.ndjson", &[kwh("g", "m1", "2026-01-22T00:00:00Z", "2")]);
    assert_eq!(net(&project), [moved[0].clone(), moved[1].replace(",51", ",53")]);
    re_rate("2026-01-15", "2026-02-01");
    assert_eq!(net(&project), [moved[0].clone(), moved[1].replace("k2", "k9").replace(",51", ",53")]);
}

#[test]
fn a_part_is_re_rated_only_with_every_period_that_shares_its_usage() {
    let project = Project::new("");
    project.write(
        "reference/contracts.toml",
        "key = [\"subject\"]\n[columns]\nsubject = \"text\"\ncontract_id = \"text\"\ncurrency = \"text\"\nanchor_day = \"integer\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n",
    );
    let contracts = |rows: &[&str]| {
        let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
        project.write("reference/contracts.csv", &format!("contract_id,subject,currency,anchor_day,valid_from,valid_to\n{rows}"));
    };
    project.write(
        "rules/energy.sql",
        "CREATE MATERIALIZED VIEW energy WITH (window = 'billing_period', effective_from = '2026-01-01') AS
         SELECT c.contract_id AS customer_id, c.contract_id, 'Energy' AS item, sum(u.quantity) AS amount, c.currency
         FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
         WHERE u.meter = 'kwh' GROUP BY c.contract_id, c.currency",
    );
    contracts(&["K1,s1,EUR,1,2026-01-01,", "K2,s2,EUR,1,2026-01-01,", "K3,s3,EUR,1,2026-01-01,", "K3,s4,EUR,1,2026-01-01,"]);
    let mut events = vec![kwh("end", "s4", "2026-04-05T00:00:00Z", "0")];
    for month in 1..=3 {
        for (subject, quantity) in [("s1", "1"), ("s2", "10"), ("s3", "100")] {
            events.push(kwh(&format!("{subject}{month}"), subject, &format!("2026-0{month}-20T00:00:00Z"), quantity));
        }
    }
    let file = project.write("a.ndjson", &lines(&events));
    ok(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap()]);
    let owed = || -> Vec<String> {
        sql(
            project.path(),
            "SELECT contract_id, cast(window_start AS date), sum(amount) FROM charges WHERE window_start < '2026-04-01T00:00:00Z'
             GROUP BY 1, 2 HAVING sum(amount) <> 0 ORDER BY 1, 2",
        )
    };
    let before = ["K1,2026-01-01,1", "K1,2026-02-01,1", "K1,2026-03-01,1"].map(str::to_owned);
    assert_eq!(owed()[..3], before);
    // s1 went to K2 in February, s3 to K1 in January: January is not asked for, the rest goes together or not at all.
    contracts(&[
        "K1,s1,EUR,1,2026-01-01,2026-02-10",
        "K2,s1,EUR,1,2026-02-10,",
        "K2,s2,EUR,1,2026-01-01,",
        "K1,s3,EUR,1,2026-01-01,",
        "K3,s4,EUR,1,2026-01-01,",
    ]);
    let re_rate = |from: &str, to: &str| ok(&["rate", "-C", project.text(), "--re-rate", "--from", from, "--to", to]);
    let total = || sql(project.path(), "SELECT sum(amount) FROM charges");
    re_rate("2026-02-01", "2026-04-01");
    assert_eq!(total(), ["333"]);
    assert_eq!(owed()[..3], ["K1,2026-01-01,1", "K1,2026-02-01,100", "K1,2026-03-01,100"]);
    re_rate("2026-01-01", "2026-04-01");
    assert_eq!(total(), ["333"]);
    assert_eq!(owed()[..3], ["K1,2026-01-01,101", "K1,2026-02-01,100", "K1,2026-03-01,100"]);
}

#[test]
fn readers_settle_against_what_was_charged_and_are_re_rated_with_it() {
    let prices = |price: &str| format!("plan,up_to,unit_price,flat_fee\nhome,,{price},0\n");
    let project = Project::new("");
    project.write("reference/prices.csv", &prices("1"));
    project.write(
        "rules/energy.sql",
        &crate::project::RULE
            .replace("window = 'month'", "window = 'day'")
            .replace("grace = '1 day', ", "")
            .replace("2026-09-01", "2026-06-01"),
    );
    let month = |name: &str, options: &str, query: &str| {
        let text = format!("CREATE MATERIALIZED VIEW {name} WITH (window = 'month', effective_from = '2026-06-01'{options}) AS {query}");
        project.write(&format!("rules/{name}.sql"), &text);
    };
    month(
        "vat",
        "",
        "SELECT e.customer_id, 'VAT' AS item, sum(e.amount) * 0.2 AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency",
    );
    month(
        "true_up",
        ", history = '2 windows'",
        "SELECT e.customer_id, 'True-up' AS item, 1000 - sum(e.amount) AS amount, e.currency FROM earlier.energy e GROUP BY e.customer_id, e.currency",
    );
    let rate = |name: &str, events: &[Value]| {
        let file = project.write(name, &lines(events));
        ok(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap()]);
    };
    let owed = |rule: &str| -> Vec<String> {
        sql(
            project.path(),
            &format!(
                "SELECT window_start, sum(amount) FROM charges WHERE rule = '{rule}' GROUP BY window_start HAVING sum(amount) <> 0 ORDER BY 1"
            ),
        )
    };
    rate(
        "a.ndjson",
        &[
            kwh("a", "m1", "2026-06-10T00:00:00Z", "100"),
            kwh("b", "m1", "2026-07-10T00:00:00Z", "100"),
            kwh("c", "m1", "2026-08-01T12:00:00Z", "0"),
        ],
    );
    // The price doubles; what was charged stays, and later rules settle against that.
    project.write("reference/prices.csv", &prices("2"));
    rate("b.ndjson", &[kwh("d", "m1", "2026-09-01T12:00:00Z", "0")]);
    assert_eq!(owed("true_up"), ["2026-07-01T00:00:00Z,900", "2026-08-01T00:00:00Z,800"]);
    assert_eq!(owed("vat"), ["2026-06-01T00:00:00Z,20", "2026-07-01T00:00:00Z,20"]);
    // Re-rating one day takes along the months that read it.
    ok(&["rate", "-C", project.text(), "--re-rate", "--from", "2026-06-10", "--to", "2026-06-11"]);
    assert_eq!(owed("energy"), ["2026-06-10T00:00:00Z,200", "2026-07-10T00:00:00Z,100"]);
    assert_eq!(owed("vat"), ["2026-06-01T00:00:00Z,40", "2026-07-01T00:00:00Z,20"]);
    assert_eq!(owed("true_up"), ["2026-07-01T00:00:00Z,800", "2026-08-01T00:00:00Z,700"]);
    // Late usage of July is charged at July's price, and its readers follow.
    rate("c.ndjson", &[kwh("e", "m1", "2026-07-10T01:00:00Z", "50")]);
    assert_eq!(owed("energy"), ["2026-06-10T00:00:00Z,200", "2026-07-10T00:00:00Z,150"]);
    assert_eq!(owed("vat"), ["2026-06-01T00:00:00Z,40", "2026-07-01T00:00:00Z,30"]);
    assert_eq!(owed("true_up"), ["2026-07-01T00:00:00Z,800", "2026-08-01T00:00:00Z,650"]);
}

#[test]
fn what_opens_a_billing_period_belongs_to_its_contract() {
    let (_, owed) = in_two_steps(
        |project| {
            project.contracts(
                "s1,cust-1,k1,home,EUR,1,2026-01-01,\ns2,cust-1,k1,home,EUR,1,2026-01-01,2026-02-01\ns2,cust-2,k2,home,EUR,1,2026-02-01,\n",
            );
            let levels = LEVELS
                .replace("window = 'month'", "window = 'billing_period'")
                .replace("SELECT l.subject AS customer_id, 'Storage'", "SELECT c.customer_id, c.contract_id, 'Storage'")
                .replace(
                    "FROM levels l CROSS JOIN billing_window w GROUP BY l.subject",
                    "FROM levels l CROSS JOIN billing_window w JOIN (SELECT DISTINCT customer_id, contract_id FROM contracts x \
                     WHERE x.valid_from < TIMESTAMP '2100-01-01T00:00:00Z' AND (x.valid_to IS NULL OR x.valid_to > TIMESTAMP '1970-01-01T00:00:00Z')) c \
                     ON c.contract_id IS NOT NULL GROUP BY c.customer_id, c.contract_id, l.subject",
                )
                .replace("AS currency", "AS currency, l.subject AS device");
            project.write("rules/energy.sql", &levels);
        },
        &[
            event("level", "a", "s1", "2026-01-01T00:00:00Z", "1"),
            event("level", "b", "s2", "2026-01-01T00:00:00Z", "10"),
            event("level", "end", "s1", "2026-03-01T00:00:00Z", "0"),
        ],
        &[],
    );
    let february: Vec<&str> = owed.iter().filter(|line| line.contains("2026-02-01T00:00:00Z,2026-03-01")).map(String::as_str).collect();
    assert_eq!(
        february,
        [
            "energy,cust-1,k1,Storage,2026-02-01T00:00:00Z,2026-03-01T00:00:00Z,672",
            "energy,cust-2,k2,Storage,2026-02-01T00:00:00Z,2026-03-01T00:00:00Z,6720"
        ]
    );
}

#[test]
fn late_usage_of_a_former_version_finds_every_rule_that_it_read() {
    let project = Project::new("");
    let both = "CREATE MATERIALIZED VIEW both_taxed WITH (window = 'month', grace = '1 day', effective_from = '2026-09-01') AS
        SELECT t.customer_id, 'Both' AS item, sum(t.amount) AS amount, t.currency
        FROM (SELECT customer_id, amount, currency FROM energy UNION ALL SELECT customer_id, amount, currency FROM energy_tax) t
        GROUP BY t.customer_id, t.currency";
    project.write("rules/energy_tax.sql", TAX);
    project.write("rules/both_taxed.sql", both);
    let rate = |name: &str, events: &[Value]| {
        let file = project.write(name, &lines(events));
        ok(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap(), "--close"]);
    };
    rate("a.ndjson", &[kwh("a", "m1", "2026-09-02T00:00:00Z", "10")]);
    project.write("rules/both_taxed.sql", &format!("{both} -- the same"));
    rate("b.ndjson", &[kwh("b", "m1", "2026-09-03T00:00:00Z", "10")]);
    assert!(
        net(&project).contains(&"both_taxed,cust-1,,Both,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,13.2".to_owned()),
        "{:?}",
        net(&project)
    );
}

#[test]
fn a_reader_of_a_former_version_follows_what_it_read() {
    let prices = |price: &str| format!("plan,up_to,unit_price,flat_fee\nhome,,{price},0\n");
    let project = Project::new("");
    project.write("reference/prices.csv", &prices("1"));
    project.write("rules/energy.sql", &crate::project::RULE.replace("window = 'month'", "window = 'day'"));
    let reader = TAX.replace("VIEW energy_tax", "VIEW a_tax");
    project.write("rules/a_tax.sql", &reader);
    let rate = |name: &str, events: &[Value]| {
        let file = project.write(name, &lines(events));
        ok(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap(), "--close"]);
    };
    let owed = || sql(project.path(), "SELECT rule, sum(amount) FROM charges GROUP BY 1 ORDER BY 1");
    rate("a.ndjson", &[kwh("a", "m1", "2026-09-02T00:00:00Z", "10")]);
    assert_eq!(owed(), ["a_tax,2", "energy,10"]);
    // From now on it reads usage alone, and nothing by its name or text has it rated after the other.
    project.write(
        "rules/a_tax.sql",
        "CREATE MATERIALIZED VIEW a_tax WITH (window = 'month', grace = '1 day', effective_from = '2026-09-01') AS
         SELECT c.customer_id, 'Tax' AS item, sum(u.quantity) AS amount, c.currency
         FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject WHERE u.meter = 'kwh'
         GROUP BY c.customer_id, c.currency",
    );
    rate("b.ndjson", &[kwh("b", "m1", "2026-09-03T00:00:00Z", "10"), kwh("c", "m1", "2026-09-02T01:00:00Z", "10")]);
    assert_eq!(owed(), ["a_tax,6", "energy,30"]);
    // One day is rated again, then the other is applied.
    project.write("reference/prices.csv", &prices("2"));
    ok(&["rate", "-C", project.text(), "--re-rate", "--from", "2026-09-03", "--to", "2026-09-04"]);
    assert_eq!(owed(), ["a_tax,8", "energy,40"]);
    ok(&["apply", "-C", project.text(), "--rule", "energy"]);
    assert_eq!(owed(), ["a_tax,12", "energy,60"]);
    // An epoch that was interrupted is finished before anything else.
    let late = project.write("d.ndjson", &lines(&[kwh("d", "m1", "2026-09-03T01:00:00Z", "10")]));
    let arguments = ["rate", "-C", project.text(), "--usage", late.to_str().unwrap(), "--close"];
    let died = ratemill(&arguments, &[("RATEMILL_FAIL_AT".to_owned(), "epoch.usage-appended".to_owned())]);
    assert!(!died.status.success());
    ok(&arguments);
    assert_eq!(owed(), ["a_tax,16", "energy,80"]);
    ok(&["audit", "-C", project.text()]);
}
