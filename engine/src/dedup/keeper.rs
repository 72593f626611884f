//! What a thread of its own does with the files of the index: join small ones, move those that are older than the
//! horizon into the sorted files on disk, merge these. Capture never waits for it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ratemill_schemas::time;

use super::aged_run::AgedRun;
use super::arrivals::Arrivals;
use super::entry::Entry;
use super::files::{Files, Kind, Span, is_damage};
use crate::log::LogError;

/// Time between two looks at the folder.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Keys of a joined file, and of what ages at once: bounds the memory of both.
const JOINED_KEYS_MAX: u64 = 1 << 21;
/// A joined file spans at most this part of the horizon, lest keys stay in memory for long after it.
const HORIZON_PARTS: i64 = 32;
/// Files that are joined or merged at once, at least.
const JOIN_RUNS: usize = 8;
const MERGE_RUNS: usize = 4;
/// Keys of a sorted file, about: a merge needs the space of its outcome on disk (6.4 GB), and in memory 1.6 bytes a key.
const MERGED_KEYS_MAX: u64 = 1 << 28;

/// Files on disk that lookups ask from now on.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) aged: Vec<Arc<AgedRun>>,
    /// Keys that may leave memory, since `aged` holds them.
    pub(super) leaving: Vec<Entry>,
}

/// What one step did.
#[derive(Debug)]
pub(super) enum Step {
    /// There is nothing to do.
    Rest,
    /// Small files were joined; nothing changes for lookups.
    Joined,
    /// Lookups are to go on with other files.
    Changed(Change),
}

/// The files of the index and what is to become of them.
#[derive(Debug)]
pub(super) struct Keeping {
    files: Files,
    aged: Vec<Arc<AgedRun>>,
    /// Time that keys stay in memory, µs.
    horizon: i64,
    stop: Arc<AtomicBool>,
}

impl Keeping {
    pub(super) fn new(files: Files, aged: Vec<Arc<AgedRun>>, horizon: i64) -> Self {
        Self { files, aged, horizon, stop: Arc::default() }
    }

    /// Does the most urgent thing, as of `now`.
    ///
    /// # Errors
    /// [`LogError::Io`]: nothing has changed then, and it may be tried again.
    pub(super) fn step(&mut self, now: i64) -> Result<Step, LogError> {
        let stepped = self.age(now).and_then(|step| match step {
            Step::Rest => self.merge(),
            step => Ok(step),
        });
        let stepped = stepped.and_then(|step| match step {
            Step::Rest => self.join(),
            step => Ok(step),
        });
        stepped.map_err(|error| LogError::io(self.files.folder(), error))
    }

    /// Moves the oldest files of memory into one sorted file.
    fn age(&mut self, now: i64) -> std::io::Result<Step> {
        let aged_before = now.saturating_sub(self.horizon);
        let mut old: Vec<Span> = Vec::new();
        let mut keys = 0;
        for arrivals in self.arrivals()? {
            keys += arrivals.keys;
            let joined = old.last().map_or_else(|| self.aged_to(), |last| last.to) == arrivals.span.from;
            if arrivals.ingested_max >= aged_before || !joined || (keys > JOINED_KEYS_MAX && !old.is_empty()) {
                break;
            }
            old.push(arrivals.span);
        }
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(Step::Rest) };
        let span = Span { from: first.from, to: last.to };
        let mut leaving = self.read_all(&old)?;
        leaving.sort_unstable();
        leaving.dedup_by(|one, other| super::entry::same_identity(one, other));
        self.aged.push(Arc::new(AgedRun::write(&self.files, span, &leaving)?));
        self.remove(Kind::Recent, &old);
        Ok(Step::Changed(Change { aged: self.aged.clone(), leaving }))
    }

    /// Merges sorted files, so that lookups ask few.
    fn merge(&mut self) -> std::io::Result<Step> {
        let sizes: Vec<u64> = self.aged.iter().map(|run| run.keys()).collect();
        let range = similar(&sizes, MERGE_RUNS, MERGED_KEYS_MAX, |_| true);
        if range.is_empty() {
            return Ok(Step::Rest);
        }
        let merged = AgedRun::merge(&self.files, &self.aged[range.clone()], &self.stop);
        if merged.as_ref().is_err_and(is_damage) {
            // Which one it is, only reading them tells.
            self.aged[range.clone()].iter().for_each(|run| {
                if run.verify(&self.stop).is_err_and(|error| is_damage(&error)) {
                    self.files.condemn(Kind::Aged, run.span);
                }
            });
        }
        let merged = Arc::new(merged?);
        let gone: Vec<Span> = self.aged.splice(range, [merged]).map(|run| run.span).collect();
        self.remove(Kind::Aged, &gone);
        Ok(Step::Changed(Change { aged: self.aged.clone(), leaving: Vec::new() }))
    }

    /// Joins small files of memory, so that a start reads few.
    fn join(&self) -> std::io::Result<Step> {
        let arrivals = self.arrivals()?;
        let sizes: Vec<u64> = arrivals.iter().map(|arrivals| arrivals.keys).collect();
        let range = similar(&sizes, JOIN_RUNS, JOINED_KEYS_MAX, |range| {
            let times = arrivals[range.clone()].iter().map(|arrivals| arrivals.ingested_max);
            let gapless = arrivals[range].windows(2).all(|pair| pair[0].span.to == pair[1].span.from);
            let spread = times.clone().max().zip(times.min()).map_or(0, |(last, first)| last.saturating_sub(first));
            gapless && spread <= self.horizon / HORIZON_PARTS
        });
        let joined = &arrivals[range];
        let (Some(first), Some(last)) = (joined.first(), joined.last()) else { return Ok(Step::Rest) };
        let span = Span { from: first.span.from, to: last.span.to };
        let spans: Vec<Span> = joined.iter().map(|arrivals| arrivals.span).collect();
        let ingested_max = joined.iter().map(|arrivals| arrivals.ingested_max).max().unwrap_or_default();
        Arrivals::write(&self.files, span, ingested_max, self.read_all(&spans)?)?;
        self.remove(Kind::Recent, &spans);
        Ok(Step::Joined)
    }

    fn arrivals(&self) -> std::io::Result<Vec<Arrivals>> {
        let spans = self.files.list()?.into_iter().filter(|(span, kind)| *kind == Kind::Recent && span.from >= self.aged_to());
        let read: std::io::Result<Vec<Arrivals>> = spans.map(|(span, _)| self.whole(span, Arrivals::open(&self.files, span))).collect();
        let mut arrivals: Vec<Arrivals> = read?;
        // A file that could not be removed after it was joined is still there.
        let all = arrivals.clone();
        arrivals.retain(|one| !all.iter().any(|other| other.span != one.span && other.span.holds(one.span)));
        Ok(arrivals)
    }

    fn read_all(&self, spans: &[Span]) -> std::io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for span in spans {
            self.whole(*span, Arrivals::read(&self.files, *span, |mut piece| entries.append(&mut piece)))?;
        }
        Ok(entries)
    }

    /// Sets a file aside when it turns out to be damaged.
    fn whole<T>(&self, span: Span, read: std::io::Result<T>) -> std::io::Result<T> {
        if read.as_ref().is_err_and(is_damage) {
            self.files.condemn(Kind::Recent, span);
        }
        read
    }

    /// Superseded files: when one stays, the next start removes it.
    fn remove(&self, kind: Kind, spans: &[Span]) {
        let files: Vec<_> = spans.iter().map(|span| (*span, kind)).collect();
        if let Err(error) = self.files.remove(&files) {
            tracing::warn!(folder = %self.files.folder().display(), %error, "a superseded file of the index of event ids stays");
        }
    }

    fn aged_to(&self) -> i64 {
        self.aged.last().map_or(0, |run| run.span.to)
    }

    fn run(mut self, changes: &SyncSender<Change>, ended: &Receiver<()>) {
        loop {
            match self.step(time::now()) {
                Ok(Step::Changed(change)) => {
                    if changes.send(change).is_err() {
                        return;
                    }
                    continue;
                }
                Ok(Step::Joined) if !self.stop.load(Ordering::Relaxed) => continue,
                Ok(_) => {}
                Err(_) if self.stop.load(Ordering::Relaxed) => return,
                Err(error) => tracing::warn!(%error, "the index of event ids could not be tidied; it will be tried again"),
            }
            if ended.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }
}

/// The newest neighbours that are alike in size: as many as there are while none is larger than all newer ones of
/// them together. Each merge then at least doubles what it touches, and about log2 of all keys many files stay.
fn similar(sizes: &[u64], runs_min: usize, keys_max: u64, fits: impl Fn(Range<usize>) -> bool) -> Range<usize> {
    let mut end = sizes.len();
    while end >= runs_min {
        let (mut begin, mut sum) = (end - 1, sizes[end - 1]);
        while begin > 0 && sizes[begin - 1] <= sum.max(1) && sum + sizes[begin - 1] <= keys_max && fits(begin - 1..end) {
            begin -= 1;
            sum += sizes[begin];
        }
        if end - begin >= runs_min {
            return begin..end;
        }
        end -= 1;
    }
    0..0
}

/// The thread and the way to it.
#[derive(Debug)]
pub(super) struct Keeper {
    changes: Option<Receiver<Change>>,
    end: Option<Sender<()>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(keeping: Keeping) -> std::io::Result<Self> {
        // One change may wait: what it holds is bounded, and the next step needs no hurry.
        let (sender, changes) = sync_channel(1);
        let (end, ended) = channel();
        let stop = Arc::clone(&keeping.stop);
        let thread = std::thread::Builder::new().name("dedup".to_owned()).spawn(move || keeping.run(&sender, &ended))?;
        Ok(Self { changes: Some(changes), end: Some(end), stop, thread: Some(thread) })
    }

    /// What has changed, if anything.
    pub(super) fn change(&self) -> Option<Change> {
        self.changes.as_ref()?.try_recv().ok()
    }
}

impl Drop for Keeper {
    /// Waits for the thread, which looks at `stop` every few milliseconds: two of them must never tidy one folder.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.changes = None;
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_keep_files_few_and_rewrite_little() {
        let (mut sizes, mut rewritten) = (Vec::new(), 0);
        for _ in 0..10_000 {
            sizes.push(1);
            loop {
                let range = similar(&sizes, MERGE_RUNS, u64::MAX, |_| true);
                if range.is_empty() {
                    break;
                }
                let sum = sizes[range.clone()].iter().sum();
                rewritten += sum;
                sizes.splice(range, [sum]);
            }
            assert!(sizes.len() < 16, "{sizes:?}");
        }
        assert_eq!(sizes.iter().sum::<u64>(), 10_000);
        assert!(rewritten < 10 * 10_000, "{rewritten}");
    }

    #[test]
    fn bounds_of_size_are_kept() {
        assert_eq!(similar(&[8, 8, 8, 8], 4, 31, |_| true), 0..0);
        assert_eq!(similar(&[8, 8, 8, 8], 4, 32, |_| true), 0..4);
        assert_eq!(similar(&[9, 2, 2, 2, 2, 1], 4, 100, |_| true), 1..5);
    }
}
