//! Which files are joined: small ones of a partition, alike in size, so that each byte is written again few times.

use std::collections::BTreeMap;

use ratemill_schemas::time;

use crate::lake::DataFile;

/// Bytes of what is joined.
const JOINED_BYTES_MAX: u64 = 256 << 20;
/// Files below this size are alike, whatever they are.
const ALIKE_BYTES: u64 = 1 << 20;
/// A partition that is still written to waits for so many times as many files.
const OPEN_FACTOR: usize = 8;
/// Time after its end at which a day or month is closed, µs: what comes late then comes seldom.
const SETTLING: i64 = 86_400_000_000;

/// How eagerly files are joined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eagerness {
    /// Files of a closed partition that are worth it.
    pub(super) files_min: usize,
    /// Whether a partition that is still written to is treated as one that is closed.
    pub(super) open_too: bool,
    /// The clock, µs UTC.
    pub(super) clock: i64,
}

/// Paths of files that are to be joined, group by group.
pub(super) fn groups(files: Vec<DataFile>, eagerness: Eagerness) -> Vec<Vec<String>> {
    let mut partitions: BTreeMap<Option<String>, Vec<DataFile>> = BTreeMap::new();
    for file in files.into_iter().filter(|file| file.bytes <= JOINED_BYTES_MAX / 2) {
        partitions.entry(file.partition.clone()).or_default().push(file);
    }
    let settled = time::format_instant(eagerness.clock.saturating_sub(SETTLING));
    // Days and months are written as the beginning of an instant.
    let is_closed = |partition: &String| settled.get(..partition.len()).is_some_and(|settled| partition.as_str() < settled);
    let mut groups = Vec::new();
    for (partition, files) in partitions {
        let is_open = !eagerness.open_too && !partition.as_ref().is_some_and(is_closed);
        groups.extend(alike(files, eagerness.files_min * if is_open { OPEN_FACTOR } else { 1 }));
    }
    groups
}

/// Files by size, the smallest first: as many as there are while none outweighs all smaller ones together.
fn alike(mut files: Vec<DataFile>, files_min: usize) -> Vec<Vec<String>> {
    files.sort_by(|one, other| one.bytes.cmp(&other.bytes).then_with(|| one.path.cmp(&other.path)));
    let mut groups = Vec::new();
    let (mut group, mut sum) = (Vec::new(), 0);
    for file in files {
        if sum + file.bytes > JOINED_BYTES_MAX || file.bytes > sum.max(ALIKE_BYTES) {
            groups.push(std::mem::take(&mut group));
            sum = 0;
        }
        sum += file.bytes;
        group.push(file.path);
    }
    groups.push(group);
    groups.retain(|group| group.len() >= files_min);
    groups
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(partition: Option<&str>, number: usize, bytes: u64) -> DataFile {
        DataFile { path: format!("{}/{number}", partition.unwrap_or("-")), bytes, partition: partition.map(str::to_owned) }
    }

    fn sizes(groups: &[Vec<String>]) -> Vec<usize> {
        groups.iter().map(Vec::len).collect()
    }

    #[test]
    fn closed_partitions_are_joined_soon_and_open_ones_late() {
        let clock = time::parse_instant("2026-11-03T12:00:00Z").unwrap();
        let eagerness = Eagerness { files_min: 4, open_too: false, clock };
        for (partition, few) in [
            (Some("2026-11-01"), true),
            (Some("2026-11-02"), false),
            (Some("2026-11-03"), false),
            (Some("2026-10"), true),
            (Some("2026-11"), false),
            (None, false),
        ] {
            let files = |count: usize| (0..count).map(|number| file(partition, number, 1000)).collect::<Vec<_>>();
            assert_eq!(sizes(&groups(files(4), eagerness)), if few { vec![4] } else { vec![] }, "{partition:?}");
            assert_eq!(sizes(&groups(files(3), eagerness)), Vec::<usize>::new());
            assert_eq!(sizes(&groups(files(32), eagerness)), [32]);
            assert_eq!(sizes(&groups(files(4), Eagerness { open_too: true, ..eagerness })), [4]);
        }
        // Partitions are never mixed.
        let mixed = (0..6).map(|number| file(Some(if number < 3 { "2026-01-01" } else { "2026-01-02" }), number, 1000)).collect();
        assert!(groups(mixed, eagerness).is_empty());
    }

    #[test]
    fn a_large_file_waits_until_the_small_ones_weigh_as_much() {
        let eagerness = Eagerness { files_min: 4, open_too: true, clock: 0 };
        let with = |small: usize, large: u64| {
            let small = (0..small).map(|number| file(None, number, MIB));
            groups(small.chain([file(None, 1000, large)]).collect(), eagerness)
        };
        assert_eq!(sizes(&with(8, 100 * MIB)), [8]);
        assert_eq!(sizes(&with(100, 100 * MIB)), [101]);
        assert_eq!(sizes(&with(3, 100 * MIB)), Vec::<usize>::new());
        // What is large already stays, and what is joined is bounded.
        assert_eq!(sizes(&with(8, 200 * MIB)), [8]);
        assert_eq!(sizes(&with(300, MIB)), [256, 45]);
    }

    #[test]
    fn every_byte_is_written_again_few_times() {
        let eagerness = Eagerness { files_min: 8, open_too: true, clock: 0 };
        let (mut sizes, mut rewritten) = (Vec::<u64>::new(), 0);
        for _ in 0..20_000 {
            sizes.push(MIB / 64);
            let files = sizes.iter().enumerate().map(|(number, bytes)| file(None, number, *bytes)).collect();
            for group in groups(files, eagerness) {
                let joined: Vec<usize> = group.iter().map(|path| path[2..].parse().unwrap()).collect();
                let sum: u64 = joined.iter().map(|number| sizes[*number]).sum();
                joined.iter().for_each(|number| sizes[*number] = 0);
                sizes.push(sum);
                rewritten += sum;
            }
            sizes.retain(|bytes| *bytes > 0);
            assert!(sizes.len() < 60, "{sizes:?}");
        }
        let all: u64 = sizes.iter().sum();
        assert_eq!(all, 20_000 * MIB / 64);
        assert!(rewritten < 20 * all, "{rewritten} of {all}");
    }
}
