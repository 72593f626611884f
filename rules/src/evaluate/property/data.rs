//! Reference data and usage of one case.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use ratemill_schemas::time::{day_of, format_instant, parse_instant};
use ratemill_schemas::usage::{Dimension, DimensionType, DimensionValue};
use ratemill_schemas::{Decimal, EventHasher, UsageBatchBuilder, UsageEvent, UsageSchema, Window};

use super::random::Random;
use crate::diagnostics::Diagnostics;
use crate::reference::ReferenceData;

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// How a case cuts time, and windows inside of its windows.
pub(super) struct Calendar {
    pub(super) options: &'static str,
    pub(super) inner: &'static str,
    /// About the length of a window, µs.
    length: i64,
}

pub(super) const BILLING_PERIOD: &str = "window = 'billing_period'";

const fn calendar(options: &'static str, inner: &'static str, length: i64) -> Calendar {
    Calendar { options, inner, length }
}

static CALENDARS: [Calendar; 14] = [
    calendar("window = '15 minutes'", "window = '15 minutes'", 15 * MINUTE),
    calendar("window = 'hour'", "window = '15 minutes'", 60 * MINUTE),
    calendar("window = 'day', timezone = 'Europe/London'", "window = 'day', timezone = 'Europe/London'", DAY),
    calendar("window = 'day'", "window = '6 hours'", DAY),
    calendar("window = 'day', timezone = 'America/New_York'", "window = 'day', timezone = 'America/New_York'", DAY),
    calendar("window = 'day', timezone = 'Australia/Lord_Howe'", "window = 'day', timezone = 'Australia/Lord_Howe'", DAY),
    calendar("window = 'week', timezone = 'Europe/Berlin'", "window = 'day', timezone = 'Europe/Berlin'", 7 * DAY),
    calendar("window = 'month', timezone = 'Europe/London'", "window = 'month', timezone = 'Europe/London'", 30 * DAY),
    calendar(
        "window = 'month', timezone = 'America/New_York', anchor = '31'",
        "window = 'month', timezone = 'America/New_York', anchor = '31'",
        30 * DAY,
    ),
    calendar(
        "window = 'quarter', timezone = 'Pacific/Auckland', anchor = '15'",
        "window = 'month', timezone = 'Pacific/Auckland', anchor = '15'",
        91 * DAY,
    ),
    calendar("window = 'month'", "window = 'month'", 30 * DAY),
    calendar(BILLING_PERIOD, BILLING_PERIOD, 30 * DAY),
    calendar(BILLING_PERIOD, "window = '10 days'", 30 * DAY),
    calendar(BILLING_PERIOD, BILLING_PERIOD, 30 * DAY),
];

/// Times about which clocks change somewhere.
const MIDDLES: [&str; 5] =
    ["2026-03-29T01:00:00Z", "2026-03-08T07:00:00Z", "2026-10-25T01:00:00Z", "2026-04-04T15:00:00Z", "2026-02-15T12:00:00Z"];

pub(super) const METERS: [&str; 3] = ["calls", "data", "room"];
const SUBJECTS: [&str; 6] = ["s1", "s2", "s3", "s4", "s5", "nobody"];
const ZONES: [&str; 3] = ["Europe/London", "America/New_York", "UTC"];

/// What a case is about.
pub(super) struct Setup {
    pub(super) calendar: &'static Calendar,
    /// Rated are windows that begin in `[from, to)`.
    pub(super) from: i64,
    pub(super) to: i64,
}

impl Setup {
    pub(super) fn new(random: &mut Random) -> Self {
        let calendar = random.pick(&CALENDARS.each_ref());
        let middle = parse_instant(random.pick(&MIDDLES)).unwrap();
        Self { calendar, from: middle - 4 * calendar.length, to: middle + 3 * calendar.length }
    }

    pub(super) fn by_contract(&self) -> bool {
        self.calendar.options == BILLING_PERIOD
    }

    /// The first instant that is `windows` before the rated ones.
    pub(super) fn before(&self, windows: i64) -> String {
        format_instant(self.from - windows * self.calendar.length)
    }

    fn instant(&self, random: &mut Random) -> i64 {
        random.between(self.from - self.calendar.length, self.to) / MINUTE * MINUTE
    }

    pub(super) fn reference(&self, random: &mut Random) -> ReferenceData {
        let table = |name: &str, declaration: &str, csv: String| (name.to_owned(), declaration.to_owned(), csv);
        let validity = "valid_from = 'timestamp'\nvalid_to = 'timestamp?'\n";
        let files = vec![
            table(
                "contracts",
                &format!(
                    "key = ['subject']\n[columns]\ncontract_id = 'text'\nsubject = 'text'\ncustomer_id = 'text'\n\
                        plan = 'text'\ncurrency = 'text'\nanchor_day = 'integer'\n\
                        timezone = 'text?'\nmonthly_fee = 'decimal?'\n{validity}"
                ),
                self.contracts(random),
            ),
            table(
                "prices",
                &format!(
                    "key = ['plan', 'item']\n[columns]\nplan = 'text'\n\
                        item = 'text'\nup_to = 'decimal?'\nunit_price = 'decimal'\nflat_fee = 'decimal'\n{validity}"
                ),
                self.prices(random),
            ),
            table(
                "rates",
                "key = ['plan', 'meter']\n[columns]\nplan = 'text'\nmeter = 'text'\nprice = 'decimal?'\nsince = 'timestamp?'\n\
                    grade = 'integer?'",
                self.rates(random),
            ),
            table(
                "customers",
                "key = ['customer_id']\n[columns]\ncustomer_id = 'text'\nregion = 'text?'\ncredit = 'decimal?'\n\
                    since = 'timestamp?'\ngrade = 'integer?'",
                self.customers(random),
            ),
            table(
                "labels",
                "[columns]\nsubject = 'text?'\ntag = 'text?'\nweight = 'decimal?'\nsince = 'timestamp?'\ngrade = 'integer?'",
                self.labels(random),
            ),
        ];
        let mut diagnostics = Diagnostics::default();
        let reference = ReferenceData::from_files(files, "case", &mut diagnostics);
        assert!(!diagnostics.has_errors(), "{diagnostics}");
        reference
    }

    /// Subjects change their contracts, with and without gaps; a contract may change its anchor and zone once.
    fn contracts(&self, random: &mut Random) -> String {
        let contracts: Vec<_> = (1..=4)
            .map(|number| {
                let terms = [random.between(1, 32), random.between(1, 32)].map(|anchor| (anchor, random.pick(&ZONES)));
                let changed = if random.chance(40) { self.instant(random) } else { i64::MAX };
                // Two contracts with the same months share windows.
                let terms = if matches!(number, 2 | 3) { [(1, "Europe/London"); 2] } else { terms };
                (
                    format!("K{number}"),
                    format!("C{}", number.min(3)),
                    random.pick(&["EUR", "USD"]),
                    random.pick(&["P1", "P2"]),
                    terms,
                    changed,
                )
            })
            .collect();
        let mut csv = "contract_id,subject,customer_id,plan,currency,anchor_day,timezone,monthly_fee,valid_from,valid_to\n".to_owned();
        for subject in &SUBJECTS[..5] {
            let mut bounds: Vec<i64> = (0..random.below(4)).map(|_| self.instant(random)).collect();
            bounds.push(self.from - self.calendar.length * 3 / 2);
            bounds.sort_unstable();
            bounds.dedup();
            for (index, from) in bounds.iter().enumerate() {
                let to = bounds.get(index + 1).copied().unwrap_or(i64::MAX);
                let (contract, customer, currency, plan, terms, changed) = &contracts[random.below(contracts.len())];
                if random.chance(20) {
                    continue;
                }
                let fee = random.pick(&["9.99", "0", "30", ""]);
                for (from, to, (anchor, zone)) in [(*from, to.min(*changed), terms[0]), (*changed.max(from), to, terms[1])] {
                    if from < to {
                        let to = if to == i64::MAX { String::new() } else { format_instant(to) };
                        writeln!(
                            csv,
                            "{contract},{subject},{customer},{plan},{currency},{anchor},{zone},{fee},{},{to}",
                            format_instant(from)
                        )
                        .unwrap();
                    }
                }
            }
        }
        csv
    }

    fn prices(&self, random: &mut Random) -> String {
        let mut csv = "plan,item,up_to,unit_price,flat_fee,valid_from,valid_to\n".to_owned();
        let changed = format_instant(self.instant(random));
        let first = self.before(5);
        for plan in ["P1", "P2"] {
            for item in METERS {
                let spans = if random.chance(40) {
                    vec![(first.as_str(), changed.as_str()), (changed.as_str(), "")]
                } else {
                    vec![(first.as_str(), "")]
                };
                for (from, to) in spans {
                    for up_to in ["3", "10.5"].iter().take(random.below(3)).chain([&""]) {
                        let (price, fee) = (random.pick(&["0.1", "2", "0.333"]), random.pick(&["0", "1.5"]));
                        writeln!(csv, "{plan},{item},{up_to},{price},{fee},{from},{to}").unwrap();
                    }
                }
            }
        }
        csv
    }

    /// `since` and `grade` of a row; null now and then.
    fn tail(&self, random: &mut Random) -> String {
        let since = if random.chance(30) { String::new() } else { format_instant(self.instant(random)) };
        format!("{since},{}", random.pick(&["", "1", "2", "3"]))
    }

    fn rates(&self, random: &mut Random) -> String {
        let mut csv = "plan,meter,price,since,grade\n".to_owned();
        for (plan, meter) in [("P1", "calls"), ("P1", "data"), ("P2", "calls"), ("P2", "video")] {
            writeln!(csv, "{plan},{meter},{},{}", random.pick(&["", "0.5", "2"]), self.tail(random)).unwrap();
        }
        csv
    }

    fn customers(&self, random: &mut Random) -> String {
        let mut csv = "customer_id,region,credit,since,grade\n".to_owned();
        for customer in ["C1", "C2", "C3", "C9", "s1", "s2"] {
            writeln!(csv, "{customer},{},{},{}", random.pick(&["", "eu", "us"]), random.pick(&["", "0", "7.25"]), self.tail(random))
                .unwrap();
        }
        csv
    }

    fn labels(&self, random: &mut Random) -> String {
        let mut csv = "subject,tag,weight,since,grade\n".to_owned();
        for _ in 0..random.below(5) + 2 {
            let (subject, tag) = (random.pick(&["s1", "s2", "s3", "", "C1"]), random.pick(&["calls", "eu", "", "P1"]));
            writeln!(csv, "{subject},{tag},{},{}", random.pick(&["", "1", "2.5", "-3"]), self.tail(random)).unwrap();
        }
        csv
    }

    /// Events before, in and after the windows; some fall on bounds or at one time, and some windows stay empty.
    pub(super) fn usage(&self, windows: &[Window], schema: &UsageSchema, random: &mut Random) -> RecordBatch {
        let quiet: Vec<Window> = windows.iter().copied().filter(|_| random.chance(30)).collect();
        let length = self.calendar.length;
        let mut times = vec![self.from];
        for _ in 0..random.below(45) + 15 {
            let bound = windows.get(random.below(windows.len().max(1))).map_or(self.from, |window| window.start);
            let time = match random.below(10) {
                0 => bound,
                1 => bound - 1,
                2 => times[random.below(times.len())],
                _ => random.between(self.from - 3 * length, self.to + length),
            };
            if !quiet.iter().any(|window| window.contains(time)) {
                times.push(time);
            }
        }
        let mut builder = UsageBatchBuilder::new(schema, EventHasher::new([1, 2]), i64::MAX, times.len());
        for (number, time) in times.iter().enumerate() {
            let dimensions = [
                if random.chance(30) { DimensionValue::Null } else { DimensionValue::Text(random.pick(&["eu", "us", "calls"]).into()) },
                if random.chance(30) { DimensionValue::Null } else { DimensionValue::Integer(random.between(0, 4)) },
                if random.chance(30) { DimensionValue::Null } else { DimensionValue::Boolean(random.chance(50)) },
            ];
            let id = format!("{}{number}", random.pick(&["a", "b", "z"]));
            let event = UsageEvent {
                source: random.pick(&["src", "calls"]),
                id: &id,
                meter: random.pick(&METERS),
                subject: random.pick(&SUBJECTS),
                time: *time,
                quantity: random.pick(&["0", "1", "2.5", "0.125", "7", "12", "-1"]).parse::<Decimal>().unwrap(),
                end: random.chance(50).then(|| time + random.between(0, length)),
                dimensions: &dimensions,
                attributes: &[("note".into(), "x".into())],
            };
            builder.append(&event).unwrap();
        }
        let (decoded, ..) = builder.finish().unwrap();
        let mut columns = decoded.columns().to_vec();
        columns.push(Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC")) as ArrayRef);
        columns.push(Arc::new(Int64Array::from_iter_values(0..i64::try_from(times.len()).unwrap())));
        columns.push(Arc::new(Date32Array::from_iter_values(times.iter().map(|time| day_of(*time)))));
        RecordBatch::try_new(Arc::clone(schema.stored()), columns).unwrap()
    }
}

pub(super) fn usage_schema() -> Arc<UsageSchema> {
    let dimension = |name: &str, kind| Dimension { name: name.to_owned(), kind };
    Arc::new(UsageSchema::new(vec![
        dimension("region", DimensionType::Text),
        dimension("tier", DimensionType::Integer),
        dimension("flag", DimensionType::Boolean),
    ]))
}

/// The same rows in another order, in batches of other sizes, over so many partitions.
pub(super) fn dealt_out(rows: &RecordBatch, partitions: usize, random: &mut Random) -> Vec<Vec<RecordBatch>> {
    let mut order: Vec<u32> = (0..u32::try_from(rows.num_rows()).unwrap()).collect();
    random.shuffle(&mut order);
    let mut dealt = vec![Vec::new(); partitions];
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let (some, others) = rest.split_at(random.below(rest.len().min(9)) + 1);
        dealt[random.below(partitions)].push(take_record_batch(rows, &UInt32Array::from(some.to_vec())).unwrap());
        rest = others;
    }
    if random.chance(20) {
        let schema = rows.schema();
        dealt = dealt.into_iter().map(|batches| vec![concat_batches(&schema, &batches).unwrap()]).collect();
    }
    dealt
}
