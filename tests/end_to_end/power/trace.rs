//! What a process did to files, as strace tells it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::engine::binary;

/// One thing that was done to the files below a folder, or an answer to a sender.
#[derive(Debug, Clone)]
pub enum Op {
    Open {
        path: PathBuf,
        truncate: bool,
    },
    Write {
        path: PathBuf,
        at: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        path: PathBuf,
        length: usize,
    },
    Sync {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    MakeFolder {
        path: PathBuf,
    },
    /// HTTP 200 left the process.
    Acknowledged,
}

const CALLS: &str = "openat,write,pwrite64,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,lseek,sendto,sendmsg";

/// The program under strace, which writes to `file`. The program is the child, strace runs beside it.
pub fn traced(file: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-q", "--seccomp-bpf", "-s", "64000000", "-xx", "-yy"]);
    command.args(["-e", &format!("trace={CALLS}")]).arg("-o").arg(file).arg(binary());
    command
}

/// The operations in `text` on files below `root`, their paths relative to it. `text` is whole once the process is gone.
pub fn parse(text: &str, root: &Path) -> Option<Vec<Op>> {
    let main = text.split(' ').next()?;
    // Short process numbers are padded.
    text.lines().rev().find(|line| line.strip_prefix(main).is_some_and(|rest| rest.trim_start().starts_with("+++")))?;
    let mut parser = Parser { root, offsets: HashMap::new(), ops: Vec::new() };
    let mut unfinished: HashMap<&str, &str> = HashMap::new();
    for line in text.lines() {
        let (pid, call) = line.split_once(' ')?;
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix("<unfinished ...>") {
            parser.answered(begun);
            unfinished.insert(pid, begun);
        } else if let Some((_, rest)) = call.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            let begun = unfinished.remove(pid).unwrap_or_default();
            parser.call(&format!("{begun}{rest}"));
        } else {
            parser.answered(call);
            parser.call(call);
        }
    }
    Some(parser.ops)
}

struct Parser<'r> {
    root: &'r Path,
    /// Where the next write of each descriptor goes.
    offsets: HashMap<String, usize>,
    ops: Vec<Op>,
}

impl Parser<'_> {
    /// An answer counts from the moment on that it was handed over.
    fn answered(&mut self, call: &str) {
        let is_socket = call.split_once('(').is_some_and(|(_, rest)| rest.contains("<TCP:"));
        let begins = |text: &str| call.contains(&format!("\"{}", hex(text.as_bytes())));
        if is_socket && begins("HTTP/1.1 200") {
            self.ops.push(Op::Acknowledged);
        }
    }

    fn call(&mut self, call: &str) -> Option<()> {
        let (name, rest) = call.split_once('(')?;
        let (arguments, result) = rest.rsplit_once(" = ")?;
        // Neither an error, nor what a process that was killed never came to know.
        if !result.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        match name {
            "openat" => self.open(arguments, result)?,
            "write" | "pwrite64" | "writev" => self.write(name, arguments)?,
            "lseek" => {
                let (descriptor, _) = arguments.split_once('<')?;
                self.offsets.insert(descriptor.to_owned(), result.trim().parse().ok()?);
            }
            "ftruncate" => {
                let path = self.below(described(arguments)?)?;
                let length = last_number(arguments)?;
                self.ops.push(Op::Truncate { path, length });
            }
            "fsync" | "fdatasync" => {
                let path = self.below(described(arguments)?)?;
                self.ops.push(Op::Sync { path });
            }
            _ => self.name_changed(name, arguments)?,
        }
        Some(())
    }

    fn open(&mut self, arguments: &str, result: &str) -> Option<()> {
        let descriptor = result.split_once('<').map_or(result, |(descriptor, _)| descriptor);
        self.offsets.insert(descriptor.to_owned(), 0);
        let path = self.below(described(result)?)?;
        if arguments.contains("O_CREAT") {
            self.ops.push(Op::Open { path, truncate: arguments.contains("O_TRUNC") });
        }
        Some(())
    }

    fn write(&mut self, name: &str, arguments: &str) -> Option<()> {
        let path = self.below(described(arguments)?)?;
        let (descriptor, _) = arguments.split_once('<')?;
        let bytes: Vec<u8> = strings(arguments).concat();
        let at = if name == "pwrite64" {
            last_number(arguments)?
        } else {
            let next = self.offsets.entry(descriptor.to_owned()).or_default();
            *next += bytes.len();
            *next - bytes.len()
        };
        self.ops.push(Op::Write { path, at, bytes });
        Some(())
    }

    fn name_changed(&mut self, name: &str, arguments: &str) -> Option<()> {
        let paths: Vec<PathBuf> = strings(arguments).into_iter().filter_map(|bytes| self.below(String::from_utf8(bytes).ok()?)).collect();
        let op = match (name, &paths[..]) {
            ("rename" | "renameat" | "renameat2", [from, to]) => Op::Rename { from: from.clone(), to: to.clone() },
            ("link" | "linkat", [from, to]) => Op::Link { from: from.clone(), to: to.clone() },
            ("unlink" | "unlinkat" | "rmdir", [path]) => Op::Unlink { path: path.clone() },
            ("mkdir" | "mkdirat", [path]) => Op::MakeFolder { path: path.clone() },
            _ => return None,
        };
        self.ops.push(op);
        Some(())
    }

    fn below(&self, path: String) -> Option<PathBuf> {
        Path::new(&path).strip_prefix(self.root).ok().map(Path::to_owned)
    }
}

/// The path that strace puts behind a descriptor.
fn described(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('<')?;
    let (path, _) = rest.split_once('>')?;
    String::from_utf8(unhex(path)).ok()
}

/// The last argument; of a call that others interrupted, blanks stand around it.
fn last_number(arguments: &str) -> Option<usize> {
    arguments.rsplit_once(", ")?.1.trim_end_matches([')', ' ']).parse().ok()
}

/// All quoted strings.
fn strings(text: &str) -> Vec<Vec<u8>> {
    text.split('"').skip(1).step_by(2).map(unhex).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|byte| u8::from_str_radix(byte.get(..2)?, 16).ok()).collect()
}
