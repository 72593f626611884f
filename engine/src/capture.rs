//! Capture: submissions → dedup → usage log → answers. One thread owns the index and the log's end.
//!
//! Whatever waits in the queue is written as one group with one sync; a lone submission is written at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use ratemill_connectors::{AdoptedRows, IntakeError, Receipt, Submission};
use ratemill_schemas::changes::ChangeKey;
use ratemill_schemas::files::FileClaim;
use ratemill_schemas::rejected::to_batch;
use ratemill_schemas::{EventHasher, EventKey, Rejection, UsageSchema, Verdict, time};
use tokio::sync::{Notify, mpsc};

use crate::adopted::Part;
use crate::dedup::{Admission, DedupIndex};
use crate::failpoint::Failpoint;
use crate::log::{Frame, InputProgress, LogError, LogWriter, LoggedFile, RecentFrames};
use crate::pulse::{Outcome, Pulse};

/// Rows of one group.
const GROUP_ROWS: usize = 100_000;
/// Bytes of one group, about.
const GROUP_BYTES: usize = 8 << 20;

/// What the rest of the engine sees of capture.
#[derive(Debug, Default)]
pub struct CaptureProgress {
    /// Position up to which the log is durable.
    pub position: AtomicI64,
    /// Bytes of the log that are not in the lake yet, or whose event ids are to be saved.
    pub undrained_bytes: AtomicU64,
    /// Position up to which the lake has everything, and the log is let go of.
    pub drained: AtomicI64,
    /// The newest frames of the log.
    pub recent: RecentFrames,
    /// Rung after each group.
    pub grown: Notify,
    /// Counts, for those who ask how the engine is.
    pub pulse: Pulse,
    /// Keys of adopted files that are not in the lake yet, by the position of the first row.
    adopted_keys: Mutex<HashMap<i64, Vec<EventKey>>>,
}

impl CaptureProgress {
    /// Hands over the keys of the adopted file at `position`; none after a restart.
    pub fn take_adopted_keys(&self, position: i64) -> Option<Vec<EventKey>> {
        self.adopted_keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&position)
    }
}

/// The capture thread's state.
#[derive(Debug)]
pub struct Capture {
    /// Submissions.
    pub queue: mpsc::Receiver<Submission>,
    /// The log's end.
    pub log: LogWriter,
    /// What was seen.
    pub dedup: DedupIndex,
    /// Hashes rejections.
    pub hasher: EventHasher,
    /// The usage schema.
    pub schema: Arc<UsageSchema>,
    /// Name of the log, for receipts.
    pub log_id: Arc<str>,
    /// Bytes of log from which on submissions are refused.
    pub quota: u64,
    /// What the rest of the engine sees.
    pub progress: Arc<CaptureProgress>,
    /// The disk had no room for the last group.
    pub is_full: bool,
}

/// One submission after dedup, waiting for the sync.
struct Pending {
    submission: Submission,
    verdicts: Vec<Verdict>,
}

impl Pending {
    /// What became known by it.
    fn accepted_keys(&self) -> impl Iterator<Item = EventKey> {
        let usage = &self.submission.usage;
        let (of_usage, of_changes) = self.verdicts.split_at(usage.keys.len());
        let accepted = |(key, verdict): (_, &Verdict)| (*verdict == Verdict::Accepted).then_some(key);
        let events = usage.keys.iter().copied().zip(of_usage).filter_map(accepted);
        let changes = usage.change_keys.iter().zip(of_changes).filter(|(_, verdict)| **verdict == Verdict::Accepted);
        events.chain(changes.flat_map(|(key, _)| key.keys()))
    }
}

/// A rejected record that is kept.
struct Rejected {
    input: Arc<str>,
    rejection: Rejection,
    key: EventKey,
}

impl Capture {
    /// Works until every sender is gone.
    ///
    /// # Errors
    /// [`LogError`] when the log or the index failed: nothing after that was answered, and the process must stop.
    pub fn run(mut self) -> Result<(), LogError> {
        while let Some(first) = self.queue.blocking_recv() {
            let mut group = vec![first];
            let (mut rows, mut bytes) = weigh(&group[0]);
            while rows < GROUP_ROWS && bytes < GROUP_BYTES {
                let Ok(next) = self.queue.try_recv() else { break };
                let (more_rows, more_bytes) = weigh(&next);
                rows += more_rows;
                bytes += more_bytes;
                group.push(next);
            }
            if self.progress.undrained_bytes.load(Ordering::Acquire) > self.quota {
                for submission in group {
                    self.progress.pulse.count(&submission.input, Outcome::Refused, submission.usage.records());
                    let _ = submission.reply.send(Err(IntakeError::Full));
                }
                continue;
            }
            self.commit(group)?;
        }
        Ok(())
    }

    fn commit(&mut self, group: Vec<Submission>) -> Result<(), LogError> {
        let started = std::time::Instant::now();
        self.dedup.tend();
        let mut pending = Vec::with_capacity(group.len());
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut changes: Vec<RecordBatch> = Vec::new();
        let mut rejections: Vec<Rejected> = Vec::new();
        let mut claims: Vec<FileClaim> = Vec::new();
        let mut adopted: Vec<(LoggedFile, Vec<EventKey>)> = Vec::new();
        let mut inputs: HashMap<Arc<str>, Option<i64>> = HashMap::new();
        let mut runs: Vec<(Arc<str>, usize, usize)> = Vec::new();
        let mut duplicates = 0;
        for mut submission in group {
            let mut verdicts = self.verdicts(&submission, &mut rejections)?;
            duplicates += verdicts.iter().filter(|verdict| **verdict == Verdict::Duplicate).count();
            for rejection in std::mem::take(&mut submission.usage.rejections) {
                let key = EventKey {
                    identity: self.hasher.rejection(&submission.input, &rejection.position, rejection.reason.code(), &rejection.raw),
                    content: 0,
                };
                self.progress.pulse.count(&submission.input, Outcome::Rejected, 1);
                metrics::counter!("ratemill_rejected_total", "reason" => rejection.reason.code()).increment(1);
                if self.dedup.check(key)? == Verdict::Accepted {
                    rejections.push(Rejected { input: Arc::clone(&submission.input), rejection, key });
                }
            }
            let (of_usage, of_changes) = verdicts.split_at(submission.usage.keys.len());
            batches.extend(accepted(&submission.usage.batch, of_usage).map_err(|source| self.arrow(source))?);
            if let Some(batch) = &submission.usage.changes {
                changes.extend(accepted(batch, of_changes).map_err(|source| self.arrow(source))?);
            }
            let taken = |verdicts: &[Verdict]| verdicts.iter().filter(|verdict| **verdict == Verdict::Accepted).count();
            runs.push((Arc::clone(&submission.input), taken(of_usage), taken(of_changes)));
            if let Some(rows) = submission.adopted.take() {
                verdicts = self.adopt(&submission.input, rows, &mut adopted)?;
                duplicates += verdicts.iter().filter(|verdict| **verdict == Verdict::Duplicate).count();
            }
            claims.append(&mut submission.claims);
            let time_max = submission.usage.time_max.filter(|_| !submission.historical);
            let progress = inputs.entry(Arc::clone(&submission.input)).or_default();
            *progress = (*progress).max(time_max);
            pending.push(Pending { submission, verdicts });
        }
        let usage = match batches.len() {
            0 => None,
            1 => batches.pop(),
            _ => Some(concat_batches(self.schema.decoded(), &batches).map_err(|source| self.arrow(source))?),
        };
        let changes = match changes.first() {
            Some(first) => Some(concat_batches(&first.schema(), &changes).map_err(|source| self.arrow(source))?),
            None => None,
        };
        let rejected = if rejections.is_empty() {
            None
        } else {
            Some(to_batch(rejections.iter().map(|rejected| (&*rejected.input, &rejected.rejection))).map_err(|source| self.arrow(source))?)
        };
        let inputs = inputs.into_iter().map(|(input, time_max)| InputProgress { input: input.to_string(), time_max }).collect();
        let (adopted, keys): (Vec<LoggedFile>, Vec<Vec<EventKey>>) = adopted.into_iter().unzip();
        let mut frame = Frame::new(usage, rejected, duplicates, inputs, claims)
            .with_changes(changes)
            .with_runs(runs.iter().map(|(input, rows, changes)| (&**input, *rows, *changes)))
            .with_adopted(adopted);
        if !frame.is_empty() {
            match self.log.append(&mut frame, time::now(), self.progress.drained.load(Ordering::Acquire)) {
                Err(error @ LogError::Full { .. }) => {
                    let noted = rejections.iter().map(|rejected| rejected.key).chain(keys.into_iter().flatten());
                    self.push_back(&error, pending, noted.collect());
                    return Ok(());
                }
                appended => appended?,
            };
            self.is_full = false;
            self.hand_over(&frame, keys);
            self.progress.undrained_bytes.fetch_add(frame.weight(), Ordering::AcqRel);
            self.progress.recent.keep(frame);
            self.progress.position.store(self.log.position(), Ordering::Release);
            self.progress.grown.notify_one();
            metrics::histogram!("ratemill_log_commit_duration_seconds").record(started.elapsed());
        }
        self.progress.pulse.note_ids(self.dedup.len());
        Failpoint::CaptureBeforeAnswer.reached();
        self.answer(pending);
        Failpoint::CaptureAnswered.reached();
        Ok(())
    }

    /// Makes the rows of a file known, and adds it to the files of the frame unless none of them is new.
    fn adopt(&mut self, input: &str, rows: AdoptedRows, adopted: &mut Vec<(LoggedFile, Vec<EventKey>)>) -> Result<Vec<Verdict>, LogError> {
        let AdoptedRows { file, mut keys } = rows;
        let Admission::Admitted(left_out) = self.dedup.admit(&keys)? else { return Ok(vec![Verdict::Conflict]) };
        let verdicts = vec![Verdict::Duplicate; left_out.len()];
        self.progress.pulse.count(input, Outcome::Accepted, keys.len() - left_out.len());
        if left_out.len() < keys.len() {
            let mut known = left_out.iter().copied().peekable();
            let mut row = 0;
            keys.retain(|_| {
                let is_new = known.next_if_eq(&row).is_none();
                row += 1;
                is_new
            });
            adopted.push((LoggedFile { file, left_out }, keys));
        }
        Ok(verdicts)
    }

    /// Keys of adopted files wait for their epoch, which would have to read the files again else.
    fn hand_over(&self, frame: &Frame, keys: Vec<Vec<EventKey>>) {
        let mut waiting = self.progress.adopted_keys.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(Part::of_frame(&frame.header).iter().map(|part| part.position).zip(keys));
    }

    /// The disk is full: nothing of this is kept, nor known.
    fn push_back(&mut self, error: &LogError, pending: Vec<Pending>, noted: Vec<EventKey>) {
        if !std::mem::replace(&mut self.is_full, true) {
            tracing::error!(%error, "usage is refused until there is room");
        }
        self.dedup.forget(noted.into_iter());
        for pending in pending {
            self.dedup.forget(pending.accepted_keys());
            self.progress.pulse.count(&pending.submission.input, Outcome::Refused, pending.submission.usage.records());
            let _ = pending.submission.reply.send(Err(IntakeError::Full));
        }
    }

    fn verdicts(&mut self, submission: &Submission, rejections: &mut Vec<Rejected>) -> Result<Vec<Verdict>, LogError> {
        let usage = &submission.usage;
        let mut verdicts = self.dedup.check_all(&usage.keys)?;
        for key in &usage.change_keys {
            verdicts.push(self.verdict_of_change(*key)?);
        }
        for (row, (reason, message)) in verdicts.iter().enumerate().filter_map(|(row, verdict)| Some((row, verdict.conflict()?))) {
            let index = usage.rows[row];
            let raw = usage.raw_of(row);
            let position = usage.positions.describe(row, index);
            let key = EventKey { identity: self.hasher.rejection(&submission.input, "", reason.code(), &raw), content: 0 };
            if self.dedup.check(key)? == Verdict::Accepted {
                let [source, id] = usage.identity_of(row).map(Some);
                let rejection = Rejection { index, source, id, position, reason, message: message.to_owned(), raw };
                rejections.push(Rejected { input: Arc::clone(&submission.input), rejection, key });
            }
            metrics::counter!("ratemill_rejected_total", "reason" => reason.code()).increment(1);
        }
        Ok(verdicts)
    }

    /// What a change is: the same again by its own identity, or by the version that it makes of its target. Its keys
    /// become known only together, so that a refused change leaves none behind.
    fn verdict_of_change(&mut self, key: ChangeKey) -> Result<Verdict, LogError> {
        let own = self.dedup.look_up(key.own)?;
        if own != Verdict::Accepted {
            return Ok(own);
        }
        match key.version.map(|version| self.dedup.look_up(version)).transpose()? {
            Some(Verdict::Conflict) => return Ok(Verdict::AmendmentConflict),
            Some(Verdict::Accepted) | None => {}
            Some(known) => return Ok(known),
        }
        for key in key.keys() {
            self.dedup.check(key)?;
        }
        Ok(Verdict::Accepted)
    }

    fn answer(&self, pending: Vec<Pending>) {
        for Pending { submission, verdicts } in pending {
            let of = |verdict| verdicts.iter().filter(|given| **given == verdict).count();
            let pulse = &self.progress.pulse;
            pulse.count(&submission.input, Outcome::Accepted, of(Verdict::Accepted));
            pulse.count(&submission.input, Outcome::Duplicate, of(Verdict::Duplicate));
            pulse.count(&submission.input, Outcome::Conflict, of(Verdict::Conflict) + of(Verdict::AmendmentConflict));
            pulse.note_event(&submission.input, submission.usage.time_max);
            // A sender that went away sends again, and is told of duplicates then.
            let _ = submission.reply.send(Ok(Receipt { log_id: Arc::clone(&self.log_id), position: self.log.position(), verdicts }));
        }
    }

    fn arrow(&self, source: arrow::error::ArrowError) -> LogError {
        LogError::Arrow { path: self.log_id.as_ref().into(), source }
    }
}

fn weigh(submission: &Submission) -> (usize, usize) {
    let keys = submission.adopted.as_ref().map_or(0, |adopted| adopted.keys.len());
    (submission.usage.records() + keys, submission.usage.batch.get_array_memory_size())
}

/// The accepted rows; `None` when there are none.
fn accepted(batch: &RecordBatch, verdicts: &[Verdict]) -> Result<Option<RecordBatch>, arrow::error::ArrowError> {
    if verdicts.iter().all(|verdict| *verdict == Verdict::Accepted) {
        return Ok((!verdicts.is_empty()).then(|| batch.clone()));
    }
    let mask: BooleanArray = verdicts.iter().map(|verdict| Some(*verdict == Verdict::Accepted)).collect();
    let kept = filter_record_batch(batch, &mask)?;
    Ok((kept.num_rows() > 0).then_some(kept))
}
