//! Ratemill is tested end to end in `end_to_end/`: run `tests/run.sh`, which installs the servers it needs.

pub mod conformance;
