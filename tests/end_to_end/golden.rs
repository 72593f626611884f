//! Golden scenarios, however their usage is split, ordered, repeated and rated: always the charges that were worked out.
//!
//! Generated rules over 1, 2 and 8 partitions are the property test of the `rules` crate; kills are in `failpoints`.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::engine::ok;
use crate::scenario::{By, Part, Run, Scenario};

/// How the usage of a part comes.
#[derive(Debug, Clone, Copy)]
enum Way {
    AsItIs,
    /// One event a batch.
    RowByRow,
    /// In another order, in batches of any size, and now and then something of before once more.
    ShuffledWithDuplicates,
}

impl Way {
    fn of(self, scenario: &Scenario, random: &mut StdRng) -> Vec<Part> {
        let mut parts = Vec::new();
        for (index, part) in scenario.parts.iter().enumerate() {
            let batch = |events: Vec<_>| Part { by: By::Http, records: 0, close: None, events };
            let mut batches: Vec<Part> = match self {
                Self::AsItIs => {
                    parts.push(part.clone());
                    continue;
                }
                Self::RowByRow => part.events.iter().map(|event| batch(vec![event.clone()])).collect(),
                Self::ShuffledWithDuplicates => {
                    let mut events = part.events.clone();
                    let before: Vec<_> = scenario.parts[..=index].iter().flat_map(|part| &part.events).collect();
                    events.extend((0..4).map(|_| before[random.random_range(0..before.len())].clone()));
                    events.shuffle(random);
                    // Within the shortest grace: later than that, an event is late for windows that are published. Of
                    // two events with one identity, the first is the one that counts.
                    let day = |event: &Value| event["time"].as_str().map(|time| time[..10].to_owned());
                    events.sort_by_key(|event| (event["data"]["quantity"] == "61", day(event)));
                    let size = random.random_range(1..=events.len());
                    events.chunks(size).map(|chunk| batch(chunk.to_vec())).collect()
                }
            };
            let last = batches.last_mut().unwrap();
            last.records = part.records;
            last.close.clone_from(&part.close);
            parts.extend(batches);
        }
        parts
    }
}

#[test]
fn every_way_of_delivery_and_rating_gives_the_charges_that_were_worked_out() {
    let mut random = StdRng::seed_from_u64(11);
    for scenario in Scenario::all() {
        let whole = scenario.project("", "");
        ok(&["check", whole.text()]);
        scenario.rate(&whole, &[]).unwrap();
        scenario.assert_books(&whole, "as one batch");
        ok(&["audit", "-C", whole.text()]);
        for (way, fold, partitions) in [
            (Way::AsItIs, true, 1),
            (Way::AsItIs, false, 8),
            (Way::RowByRow, true, 2),
            (Way::RowByRow, false, 1),
            (Way::ShuffledWithDuplicates, true, 8),
            (Way::ShuffledWithDuplicates, false, 2),
        ] {
            let what = format!("{way:?}, fold {fold}, {partitions} partitions");
            let project = scenario.project(&format!("fold = {fold}\n"), &format!("[limits]\nquery_partitions = {partitions}\n"));
            let delivered = Scenario { parts: way.of(&scenario, &mut random), ..scenario.clone() };
            assert_eq!(Run::new(&project, &[]).play(&delivered), 0, "{what}");
            scenario.assert_books(&project, &what);
            ok(&["audit", "-C", project.text()]);
        }
    }
}
