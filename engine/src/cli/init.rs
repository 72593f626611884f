//! `ratemill init`: the business-centre project, to start from.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;

/// Files of the example: path and content.
pub(super) const PROJECT: [(&str, &str); 25] = [
    ("ratemill.toml", include_str!("../../../examples/business-centre/ratemill.toml")),
    ("rules/office_fees.sql", include_str!("../../../examples/business-centre/rules/office_fees.sql")),
    ("rules/receptionist_calls.sql", include_str!("../../../examples/business-centre/rules/receptionist_calls.sql")),
    ("rules/printed_pages.sql", include_str!("../../../examples/business-centre/rules/printed_pages.sql")),
    ("rules/meeting_rooms.sql", include_str!("../../../examples/business-centre/rules/meeting_rooms.sql")),
    ("reference/contracts.csv", include_str!("../../../examples/business-centre/reference/contracts.csv")),
    ("reference/contracts.toml", include_str!("../../../examples/business-centre/reference/contracts.toml")),
    ("reference/offices.csv", include_str!("../../../examples/business-centre/reference/offices.csv")),
    ("reference/offices.toml", include_str!("../../../examples/business-centre/reference/offices.toml")),
    ("reference/prices.csv", include_str!("../../../examples/business-centre/reference/prices.csv")),
    ("reference/prices.toml", include_str!("../../../examples/business-centre/reference/prices.toml")),
    ("reference/fees.csv", include_str!("../../../examples/business-centre/reference/fees.csv")),
    ("reference/fees.toml", include_str!("../../../examples/business-centre/reference/fees.toml")),
    ("rules/minimum_spend.sql", include_str!("../../../examples/business-centre/rules/minimum_spend.sql")),
    ("reference/minimums.csv", include_str!("../../../examples/business-centre/reference/minimums.csv")),
    ("reference/minimums.toml", include_str!("../../../examples/business-centre/reference/minimums.toml")),
    ("tests/fixtures/pages_of_a_month.csv", include_str!("../../../examples/business-centre/tests/fixtures/pages_of_a_month.csv")),
    ("tests/meeting_rooms.yml", include_str!("../../../examples/business-centre/tests/meeting_rooms.yml")),
    ("tests/minimum_spend.yml", include_str!("../../../examples/business-centre/tests/minimum_spend.yml")),
    ("tests/office_fees.yml", include_str!("../../../examples/business-centre/tests/office_fees.yml")),
    ("tests/printed_pages.yml", include_str!("../../../examples/business-centre/tests/printed_pages.yml")),
    ("tests/receptionist_calls.yml", include_str!("../../../examples/business-centre/tests/receptionist_calls.yml")),
    ("audits/charges_have_a_contract.sql", include_str!("../../../examples/business-centre/audits/charges_have_a_contract.sql")),
    ("audits/nothing_is_negative.sql", include_str!("../../../examples/business-centre/audits/nothing_is_negative.sql")),
    (".gitignore", "lake/\nlog/\ndrops/\n"),
];

/// `ratemill init DIR`
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The folder to make; it must not hold a project yet.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Init {
    pub(super) fn run(self) -> Result<(), Failure> {
        write_project(&self.folder)?;
        println!("made a project in {}", self.folder.display());
        println!("next: ratemill check {0}, ratemill test -C {0}, then ratemill run -C {0}", self.folder.display());
        Ok(())
    }
}

/// Writes the example into `folder`.
pub(super) fn write_project(folder: &Path) -> Result<(), Failure> {
    if folder.join("ratemill.toml").exists() {
        return Err(Failure::usage(format!("{} holds a project already; name another folder", folder.display())));
    }
    for (name, content) in PROJECT {
        let path = folder.join(name);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, content));
        written.map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}
