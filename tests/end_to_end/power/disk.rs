//! A disk that keeps only what was synced: the content of a file by a sync of the file, its name by a sync of its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::rngs::StdRng;

use super::trace::Op;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Folder,
    File(usize),
}

#[derive(Debug, Clone, Default)]
struct Content {
    written: Vec<u8>,
    synced: Vec<u8>,
}

/// Names and contents as the process sees them, and as the disk holds them.
#[derive(Debug, Default)]
pub struct Disk {
    names: BTreeMap<PathBuf, Node>,
    synced: BTreeMap<PathBuf, Node>,
    contents: Vec<Content>,
}

impl Disk {
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Open { path, truncate } => {
                let known = self.file(path);
                let file = known.unwrap_or_else(|| {
                    self.contents.push(Content::default());
                    self.names.insert(path.clone(), Node::File(self.contents.len() - 1));
                    self.contents.len() - 1
                });
                if *truncate {
                    self.contents[file].written.clear();
                }
            }
            Op::Write { path, at, bytes } => {
                let Some(file) = self.file(path) else { return };
                let written = &mut self.contents[file].written;
                written.resize(written.len().max(at + bytes.len()), 0);
                written[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Op::Truncate { path, length } => {
                if let Some(file) = self.file(path) {
                    self.contents[file].written.resize(*length, 0);
                }
            }
            Op::Sync { path } => match self.file(path) {
                Some(file) => self.contents[file].synced = self.contents[file].written.clone(),
                // The folder that everything is below has no name here.
                None => self.sync_folder(path),
            },
            Op::Rename { from, to } => {
                if let Some(node) = self.names.remove(from) {
                    self.names.insert(to.clone(), node);
                }
            }
            Op::Link { from, to } => {
                if let Some(node) = self.names.get(from).copied() {
                    self.names.insert(to.clone(), node);
                }
            }
            Op::Unlink { path } => drop(self.names.remove(path)),
            Op::MakeFolder { path } => drop(self.names.insert(path.clone(), Node::Folder)),
            Op::Acknowledged => {}
        }
    }

    fn file(&self, path: &Path) -> Option<usize> {
        match self.names.get(path) {
            Some(Node::File(file)) => Some(*file),
            _ => None,
        }
    }

    fn sync_folder(&mut self, folder: &Path) {
        let inside = |path: &PathBuf| path.parent() == Some(folder);
        self.synced.retain(|path, _| !inside(path));
        self.synced.extend(self.names.iter().filter(|(path, _)| inside(path)).map(|(path, node)| (path.clone(), *node)));
    }

    /// Writes what is left after a power cut below `root`. With `luck`, some of what was not synced is left, too.
    pub fn restore(&self, root: &Path, mut luck: Option<&mut StdRng>) {
        let mut left: BTreeMap<&PathBuf, Node> = BTreeMap::new();
        for path in self.names.keys().chain(self.synced.keys()) {
            let (now, synced) = (self.names.get(path), self.synced.get(path));
            let lucky = luck.as_mut().is_some_and(|random| random.random_bool(0.5));
            if let Some(node) = if lucky { now } else { synced } {
                left.insert(path, *node);
            }
        }
        for (path, node) in &left {
            let hangs =
                path.ancestors().skip(1).all(|folder| folder == Path::new("") || left.get(&folder.to_owned()) == Some(&Node::Folder));
            let target = root.join(path);
            match node {
                _ if !hangs => {}
                Node::Folder => std::fs::create_dir_all(target).unwrap(),
                Node::File(file) => std::fs::write(target, self.contents[*file].left(luck.as_deref_mut())).unwrap(),
            }
        }
    }
}

impl Content {
    fn left(&self, luck: Option<&mut StdRng>) -> &[u8] {
        let Some(random) = luck else { return &self.synced };
        match self.written.strip_prefix(&self.synced[..]) {
            // Of what was appended, a part may be there.
            Some(appended) => &self.written[..self.synced.len() + random.random_range(0..=appended.len())],
            None if random.random_bool(0.5) => &self.written,
            None => &self.synced,
        }
    }
}
