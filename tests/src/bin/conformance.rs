//! Prices the cases of a conformance file by the rules of `tests/conformance` and compares every figure.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use ratemill_tests::conformance::report;
use ratemill_tests::conformance::run::{Selection, default_folder, run};

const HELP: &str = "\
Prices the cases of a conformance file by rules and compares every figure.

Usage: conformance [OPTIONS] CASES.json

Options:
  --model MODEL     only the cases of this model; may be given several times
  --folder DIR      where MODEL.sql and MODEL.toml are [default: tests/conformance]
  --show-rules      show the SQL of every model first
  --format FORMAT   text or json [default: text]
  -h, --help        show this help

Exit codes: 0 all passed, 1 some failed, 2 wrong usage or a file that cannot be read
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Run { selection: Selection, show_rules: bool, format: Format },
}

fn main() -> ExitCode {
    match Command::parse(std::env::args_os().skip(1)).and_then(Command::run) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

impl Command {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut cases: Option<PathBuf> = None;
        let mut selection = Selection { cases: PathBuf::new(), models: Vec::new(), folder: default_folder() };
        let (mut show_rules, mut format) = (false, Format::Text);
        while let Some(argument) = arguments.next() {
            let text = argument.to_string_lossy().into_owned();
            let (name, given) = match text.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
                _ => (text.as_str(), None),
            };
            let has_value = given.is_some();
            let mut value = || given.clone().or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a value"));
            match name {
                "-h" | "--help" => return Ok(Self::Help),
                "--show-rules" if !has_value => show_rules = true,
                "--model" => selection.models.push(value()?.to_string_lossy().into_owned()),
                "--folder" => selection.folder = PathBuf::from(value()?),
                "--format" => {
                    format = match value()?.to_str() {
                        Some("text") => Format::Text,
                        Some("json") => Format::Json,
                        _ => return Err("--format is text or json".to_owned()),
                    }
                }
                option if option.starts_with('-') => return Err(format!("option {option} is unknown; see --help")),
                _ if cases.is_some() => return Err(format!("one file of cases is read; {text} is too much")),
                _ => cases = Some(PathBuf::from(argument)),
            }
        }
        selection.cases = cases.ok_or("no file of cases is given; see --help")?;
        Ok(Self::Run { selection, show_rules, format })
    }

    fn run(self) -> Result<ExitCode, String> {
        let Self::Run { selection, show_rules, format } = self else {
            write(HELP)?;
            return Ok(ExitCode::SUCCESS);
        };
        let results = run(&selection)?;
        for warning in &results.warnings {
            eprintln!("{warning}\n");
        }
        write(&match format {
            Format::Text => report::text(&results, show_rules),
            Format::Json => report::json(&results, show_rules),
        })?;
        Ok(if results.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn write(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot write: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, String> {
        Command::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn arguments_in_any_order() {
        let models = vec!["tou".to_owned(), "volume".to_owned()];
        let selection = Selection { cases: PathBuf::from("c.json"), models, folder: PathBuf::from("rules") };
        let expected = Command::Run { selection, show_rules: true, format: Format::Json };
        let arguments = ["--model", "tou", "c.json", "--show-rules", "--model=volume", "--format", "json", "--folder=rules"];
        assert_eq!(parse(&arguments).unwrap(), expected);
        assert_eq!(parse(&["c.json", "--help"]).unwrap(), Command::Help);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let wrong: [&[&str]; 6] =
            [&[], &["a", "b"], &["a", "--model"], &["a", "--format", "xml"], &["a", "--modl", "x"], &["a", "--show-rules=1"]];
        for arguments in wrong {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
