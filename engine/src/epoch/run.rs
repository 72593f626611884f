//! Running an epoch, and finishing one that a crash interrupted.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::execution::runtime_env::RuntimeEnv;
use ratemill_rules::functions::FUNCTIONS_VERSION;
use ratemill_rules::session::{SessionLimits, runtime, session};
use ratemill_rules::{Rule, RuleProject, RuleWindow};
use ratemill_schemas::invoicing::InvoicingCalendar;
use ratemill_schemas::{EventHasher, UsageSchema, time};

use super::adopting::parts_of;
use super::books::{check_books, claims_batch, merge_days};
use super::changes::Changes;
use super::draining::UnsavedKeys;
use super::due::{self, Finalize};
pub use super::error::EpochError;
use super::folds::{Folds, tracked_version};
use super::manifest::{Completion, Manifest, WindowTask, completion_name, encode, manifest_name, read};
use super::mended::Examine;
use super::moved::MovedSubjects;
use super::questions::Questions;
use super::running_table::{RunningTable, Times};
use super::state::{EngineState, TableVersions};
use super::tables::{Tables, table_specs};
use super::tail::Tail;
use crate::adopted::{Adopted, Part};
use crate::capture::CaptureProgress;
use crate::failpoint::Failpoint;
use crate::lake::owner::Ownership;
use crate::lake::{Lake, LakeError};
use crate::log::{Frame, LogError};

/// Name of the application transactions of epochs.
pub(super) const APPLICATION: &str = "ratemill/epoch";
/// Name of the application transaction that a new owner commits to every table.
pub(crate) const OWNER: &str = "ratemill/owner";

/// What an epoch did.
#[derive(Debug, Clone, Default)]
pub struct EpochReport {
    /// Its number.
    pub epoch: i64,
    /// Usage events that went into the lake.
    pub usage: usize,
    /// Rejected records.
    pub rejected: usize,
    /// Voids and amendments.
    pub changes: usize,
    /// Windows evaluated.
    pub windows: usize,
    /// Ledger rows.
    pub charges: usize,
    /// Of them, corrections.
    pub corrections: usize,
    /// Rules that could not be evaluated, with their messages; their windows stay as they were.
    pub failures: Vec<String>,
}

/// Runs epochs, one after the other.
#[derive(Debug)]
pub struct Epochs {
    pub(super) lake: Lake,
    pub(super) ownership: Ownership,
    pub(super) tables: Tables,
    pub(super) changes: Changes,
    pub(super) adopted: Adopted,
    pub(super) adopting: Arc<tokio::sync::RwLock<()>>,
    pub(super) project: Arc<RuleProject>,
    pub(super) schema: Arc<UsageSchema>,
    pub(super) state: EngineState,
    pub(super) last: i64,
    pub(super) log_folder: PathBuf,
    pub(super) dedup_folder: PathBuf,
    pub(super) unsaved_keys: Arc<UnsavedKeys>,
    pub(super) log_id: String,
    pub(super) hasher: EventHasher,
    pub(super) progress: Arc<CaptureProgress>,
    pub(super) calendar: InvoicingCalendar,
    pub(super) runtime: Arc<RuntimeEnv>,
    pub(super) limits: SessionLimits,
    pub(super) idle: i64,
    pub(super) future_skew: i64,
    pub(super) epoch_bytes: u64,
    pub(super) inputs: Vec<String>,
    pub(super) opened_at: i64,
    /// Versions that published windows and are no longer in the project: late usage of those windows is theirs.
    pub(super) former: Vec<Rule>,
    /// Subjects whose published billing periods are of another contract than theirs by now.
    pub(super) moved: MovedSubjects,
    /// Open windows as folded state; none in a batch, which reads its usage once anyway.
    pub(super) folds: Folds,
    /// What open windows come to, as a table.
    pub(super) running: RunningTable,
    /// Usage that is in the log and not in the lake, for those who ask.
    pub(super) tail: tokio::sync::Mutex<Tail>,
    /// Who wants to know running charges.
    pub(super) questions: Questions,
    /// A manifest that is written, but not completed: it is finished before anything else.
    pub(super) unfinished: Option<Manifest>,
    /// The epoch that is completed last, as long as the log has its frames and its event ids are not saved.
    pub(super) undrained: Option<Manifest>,
    /// The unfinished manifest was written by this process, and nothing was done of it yet.
    pub(super) is_first_attempt: bool,
    /// Windows whose rule failed since the start: not tried again before there is new usage.
    pub(super) failed: HashSet<(String, RuleWindow)>,
    /// Whether published windows are to be searched for unrated usage that is mended.
    pub(super) examine: Examine,
}

/// The latest event time of these rows.
fn latest_time(batches: &[RecordBatch]) -> Option<i64> {
    let times = batches.iter().filter_map(|batch| batch.column_by_name("time"));
    times.filter_map(|times| arrow::compute::max(times.as_primitive::<TimestampMicrosecondType>())).max()
}

/// What [`Epochs::open`] needs beside the lake.
#[derive(Debug)]
pub struct EpochSetup {
    /// The rules.
    pub project: RuleProject,
    /// The usage schema.
    pub schema: Arc<UsageSchema>,
    /// The log folder.
    pub log_folder: PathBuf,
    /// The folder of the dedup index.
    pub dedup_folder: PathBuf,
    /// The log's name.
    pub log_id: String,
    /// Hashes event ids.
    pub hasher: EventHasher,
    /// What capture has done.
    pub progress: Arc<CaptureProgress>,
    /// Invoicing months.
    pub calendar: InvoicingCalendar,
    /// Memory of rating.
    pub limits: SessionLimits,
    /// Silence after which an input holds nothing back, µs.
    pub idle: i64,
    /// How far ahead of the clock an event may be dated, µs.
    pub future_skew: i64,
    /// Bytes of log in one epoch.
    pub epoch_bytes: u64,
    /// Configured inputs that move the watermark.
    pub inputs: Vec<String>,
}

impl Epochs {
    /// Opens the tables, makes the new generation known to each, keeps the present rules and reference data in the
    /// lake, and finishes an epoch that was interrupted.
    ///
    /// # Errors
    /// [`EpochError`].
    pub async fn open(lake: Lake, ownership: Ownership, completion: Option<Completion>, setup: EpochSetup) -> Result<Self, EpochError> {
        let specs = table_specs(&setup.schema);
        let mut tables = Tables::open_or_create(&lake, &setup.schema).await?;
        let generation = i64::try_from(ownership.generation()).unwrap_or(i64::MAX);
        let runtime = runtime(&setup.limits)?;
        let (authority, store) = lake.root_store();
        runtime.register_object_store(&authority, store);
        let context = session(Arc::clone(&runtime), &setup.limits);
        let mut running = RunningTable::open(&lake, &context, &setup.project).await?;
        for table in tables.each_mut().into_iter().chain([&mut running.table]) {
            // Without rows, but with the columns that the table may lack: usage may come in adopted files alone.
            let columns = specs.iter().find(|spec| spec.name == table.name()).map(|spec| RecordBatch::new_empty(Arc::clone(&spec.schema)));
            table.append(columns.as_slice(), OWNER, generation).await?;
        }
        Failpoint::TablesFenced.reached();
        let versions = completion.as_ref().map_or_else(TableVersions::default, |completion| completion.versions);
        let (last, state) = completion.map_or_else(|| (0, EngineState::default()), |completion| (completion.epoch, completion.state));
        let completed = tables.changes.clone().at_version(versions.changes).await?;
        let changes = Changes::load(&context, &completed, &setup.schema, &state.waiting).await?;
        let completed = tables.adopted.clone().at_version(versions.adopted).await?;
        let adopted = Adopted::load(&context, &lake, &completed).await?;
        let mut epochs = Self {
            lake,
            ownership,
            tables,
            changes,
            adopted,
            adopting: Arc::default(),
            project: Arc::new(setup.project),
            schema: setup.schema,
            state,
            last,
            log_folder: setup.log_folder,
            dedup_folder: setup.dedup_folder,
            unsaved_keys: Arc::default(),
            log_id: setup.log_id,
            hasher: setup.hasher,
            progress: setup.progress,
            calendar: setup.calendar,
            runtime,
            limits: setup.limits,
            idle: setup.idle,
            future_skew: setup.future_skew,
            epoch_bytes: setup.epoch_bytes,
            inputs: setup.inputs,
            opened_at: time::now(),
            unfinished: None,
            former: Vec::new(),
            moved: MovedSubjects::default(),
            folds: Folds::default(),
            running,
            tail: tokio::sync::Mutex::default(),
            questions: Questions::default(),
            undrained: None,
            is_first_attempt: false,
            failed: HashSet::new(),
            examine: Examine::Due,
        };
        let project = Arc::clone(&epochs.project);
        epochs.keep_versions(&project).await?;
        Failpoint::VersionsKept.reached();
        epochs.unfinished = read::<Manifest>(&epochs.lake, &manifest_name(epochs.last + 1)).await?;
        if epochs.unfinished.is_some() {
            epochs.former = epochs.rating().former(&epochs.state).await;
        }
        epochs.finish().await?;
        let fitted = epochs.fit(project).await?;
        epochs.take(fitted);
        Ok(epochs)
    }

    /// Folds usage into open windows from now on, starting with what the lake has of them.
    ///
    /// # Errors
    /// [`EpochError`] when the usage of open windows cannot be read.
    pub async fn start_folding(&mut self) -> Result<(), EpochError> {
        let started = std::time::Instant::now();
        self.folds = Folds::plan(&self.project, &self.runtime, &self.limits).await;
        let checkpoint = self.folds.load(&self.lake, &self.state).await?;
        let usage = self.changes.over(self.usage()?)?;
        let session = (&self.runtime, &self.limits);
        let events = self.folds.catch_up(Arc::clone(&usage), &self.state, checkpoint, session).await?;
        self.folds.catch_up_openings(&usage, &self.changes, checkpoint, session).await?;
        tracing::info!(events, checkpoint, seconds = started.elapsed().as_secs(), "open windows are folded");
        Ok(())
    }

    /// Keeps the folded state in the lake, for the next start.
    ///
    /// # Errors
    /// [`EpochError`].
    pub async fn save_checkpoint(&self) -> Result<(), EpochError> {
        if self.folds.position == self.state.position { self.folds.save(&self.lake).await } else { Ok(()) }
    }

    /// The store of the lake, and the lake's root in it.
    #[must_use]
    pub fn lake_root(&self) -> (Arc<dyn object_store::ObjectStore>, object_store::path::Path) {
        self.lake.root()
    }

    /// The state after the last epoch.
    #[must_use]
    pub fn state(&self) -> &EngineState {
        &self.state
    }

    /// The generation of the lake that is held.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.ownership.generation()
    }

    /// The number of the last completed epoch.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.last
    }

    /// Bytes that the state of open windows takes.
    #[must_use]
    pub fn fold_bytes(&self) -> usize {
        self.folds.bytes()
    }

    /// The rules.
    #[must_use]
    pub fn project(&self) -> &RuleProject {
        &self.project
    }

    /// Runs epochs until everything that was durable at the call is in the lake, and charges what was unrated and is mended;
    /// returns a report of each.
    ///
    /// # Errors
    /// [`EpochError`].
    pub async fn run(&mut self, finalize: Finalize) -> Result<Vec<EpochReport>, EpochError> {
        let mut reports = self.run_log(finalize).await?;
        if finalize != Finalize::Nothing {
            reports.extend(self.rate_mended().await?);
        }
        Ok(reports)
    }

    pub(super) async fn run_log(&mut self, finalize: Finalize) -> Result<Vec<EpochReport>, EpochError> {
        let target = self.progress.position.load(Ordering::Acquire);
        // What came while the epoch was due makes no small one after it.
        let bytes_max = self.epoch_bytes.saturating_add(self.epoch_bytes / 4);
        let mut reports: Vec<EpochReport> = self.finish().await?.into_iter().collect();
        loop {
            let frames = self.progress.recent.read_range(&self.log_folder, self.state.position, target, bytes_max)?;
            let to = frames.last().map_or(self.state.position, |frame| frame.header.end());
            if frames.is_empty() && to < target {
                return Err(LogError::Gap { path: self.log_folder.clone(), from: to, to: target }.into());
            }
            let complete = to >= target;
            // Windows close only with the last part, lest usage that is already in the log comes late.
            let finalize = if complete { finalize } else { Finalize::Nothing };
            if let Some(manifest) = self.plan(&frames, to, finalize).await? {
                self.begin(manifest).await?;
                drop(frames);
                reports.extend(self.finish().await?);
                if complete && self.state.position >= target {
                    return Ok(reports);
                }
            } else if complete {
                return Ok(reports);
            }
        }
    }

    /// Writes the manifest; from then on the epoch is finished, now or by a retry.
    pub(super) async fn begin(&mut self, manifest: Manifest) -> Result<(), EpochError> {
        Failpoint::EpochPlanned.reached();
        self.ownership.check().await?;
        let name = manifest_name(manifest.epoch);
        // An answer that was lost leaves a manifest of ours: it is read and finished, too.
        let created = self.lake.create(&name, encode(&name, &manifest)?).await;
        let written = match created {
            Ok(true) => Some(manifest),
            Ok(false) | Err(_) => read::<Manifest>(&self.lake, &name).await?,
        };
        match written {
            Some(written) if written.generation == self.ownership.generation() && written.log_id == self.log_id => {
                self.unfinished = Some(written);
                self.is_first_attempt = true;
                Failpoint::EpochManifestWritten.reached();
                Ok(())
            }
            Some(_) => Err(LakeError::Fenced { table: "epochs".to_owned() }.into()),
            None => Err(created.err().map_or(LakeError::Fenced { table: "epochs".to_owned() }, |error| error).into()),
        }
    }

    /// Finishes the epoch whose manifest is written, if there is one.
    pub(super) async fn finish(&mut self) -> Result<Option<EpochReport>, EpochError> {
        self.drain_completed().await?;
        let Some(manifest) = self.unfinished.clone() else { return Ok(None) };
        tracing::debug!(epoch = manifest.epoch, from = manifest.from, to = manifest.to, "epoch");
        let frames = self.progress.recent.read_range(&self.log_folder, manifest.from, manifest.to, u64::MAX)?;
        self.note_examined(&manifest);
        self.execute(manifest, &frames).await.map(Some)
    }

    /// What an epoch over these frames would do; `None` when it would do nothing.
    async fn plan(&self, frames: &[Frame], to: i64, finalize: Finalize) -> Result<Option<Manifest>, EpochError> {
        let epoch = self.last + 1;
        let clock = time::now();
        let mut state = self.state.clone();
        let watermark_before = state.watermark;
        let headers: Vec<_> = frames.iter().map(|frame| frame.header.clone()).collect();
        state.advance(&headers, &self.inputs, self.opened_at, clock, self.idle);
        // No usage of a version that is new now lies beyond what may be sent, or was sent under other limits.
        let sent = state.inputs.values().filter_map(|input| input.time_max).chain(state.latest_event).max().unwrap_or(i64::MIN);
        let fresh_from = if self.last == 0 { i64::MIN } else { clock.saturating_add(self.future_skew).max(sent.saturating_add(1)) };
        let tracked = self.project.rules.iter().map(|rule| (rule.name.as_str(), tracked_version(rule, &self.project.reference)));
        state.track(tracked, fresh_from);
        let batches = self.usage_of(epoch, frames)?;
        state.latest_event = state.latest_event.max(latest_time(&batches));
        let mut tasks = self.late(&mut state, watermark_before, &batches)?;
        tasks.extend(self.late_adopted(&mut state, watermark_before, &parts_of(frames)).await?);
        let effect = self.effect_of(epoch, frames, &batches).await?;
        for task in self.changed(&mut state, watermark_before, to, effect)? {
            if !tasks.iter().any(|late| late.rule == task.rule && late.window == task.window) {
                tasks.push(task);
            }
        }
        for task in std::mem::take(&mut state.pending) {
            if !tasks.iter().any(|late| late.rule == task.rule && late.window == task.window) {
                tasks.push(task);
            }
        }
        for task in due::due(&state, (&self.project, &self.former), &self.moved, clock, finalize)? {
            tasks.retain(|late| !(late.rule == task.rule && late.window == task.window));
            tasks.push(task);
        }
        if finalize == Finalize::Nothing {
            // More usage of the same windows may follow: late windows are corrected once, with the last part.
            state.pending = std::mem::take(&mut tasks);
        } else if frames.is_empty() {
            let (again, rest): (Vec<_>, Vec<_>) =
                tasks.into_iter().partition(|task| self.failed.contains(&(task.rule.clone(), task.window.clone())));
            state.pending = again.into_iter().filter(WindowTask::is_late).collect();
            tasks = rest;
        }
        if frames.is_empty() && tasks.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.manifest(to, clock, tasks, state)))
    }

    /// The manifest of the next epoch.
    pub(super) fn manifest(&self, to: i64, clock: i64, tasks: Vec<super::manifest::WindowTask>, state: EngineState) -> Manifest {
        Manifest {
            epoch: self.last + 1,
            generation: self.ownership.generation(),
            log_id: self.log_id.clone(),
            from: self.state.position,
            to,
            clock,
            idle: self.idle,
            functions: FUNCTIONS_VERSION.to_owned(),
            reference_version: self.project.reference.version().to_owned(),
            rules: self.project.rules.iter().map(|rule| (rule.name.clone(), rule.version.clone())).collect(),
            tasks,
            state,
            closing: None,
        }
    }

    /// Notes the windows that these events fall into, and returns those of them that were published.
    pub(super) fn late(
        &self,
        state: &mut EngineState,
        watermark_before: Option<i64>,
        batches: &[RecordBatch],
    ) -> Result<Vec<WindowTask>, EpochError> {
        let mut touched = due::touched(&self.project.rules, &self.project.reference, state, &self.moved, batches)?;
        due::reach_onward(state, &self.project.reference, &mut touched)?;
        let mut tasks = due::note_usage(state, touched, watermark_before);
        for task in due::late_for_former(state, &self.former, &self.project.reference, &self.moved, batches)? {
            if !tasks.iter().any(|late| late.rule == task.rule && late.window == task.window) {
                tasks.push(task);
            }
        }
        Ok(tasks)
    }

    pub(super) fn usage_of(&self, epoch: i64, frames: &[Frame]) -> Result<Vec<RecordBatch>, EpochError> {
        frames
            .iter()
            .filter_map(|frame| frame.stored_usage(&self.schema).transpose())
            .collect::<Result<_, _>>()
            .map_err(|source| EpochError::Arrow { epoch, source })
    }

    /// Does what the manifest says, as often as it takes; each commit happens once.
    async fn execute(&mut self, manifest: Manifest, frames: &[Frame]) -> Result<EpochReport, EpochError> {
        let started = std::time::Instant::now();
        let epoch = manifest.epoch;
        let arrow = |source| EpochError::Arrow { epoch, source };
        let usage = self.usage_of(epoch, frames)?;
        let rejected: Vec<RecordBatch> =
            frames.iter().filter_map(|frame| frame.stored_rejected().transpose()).collect::<Result<_, _>>().map_err(arrow)?;
        let changes = self.changes_of(epoch, frames)?;
        check_books(&manifest, frames, &usage, &rejected, &changes)?;
        let merged = merge_days(&usage).map_err(arrow)?;
        let parts = parts_of(frames);
        self.store(epoch, frames, [&merged, &rejected, &changes], &parts).await?;
        let changes_after = self.changes_after(epoch, &changes, &manifest.state.waiting)?;
        tracing::debug!(epoch, elapsed = ?started.elapsed(), "usage stored");
        let mut state = manifest.state.clone();
        state.closed.extend(manifest.closing.clone());
        if !self.folds.rules.is_empty() {
            let adopted = if parts.is_empty() { None } else { Some(self.whole_rows_of(&parts).await?) };
            self.folds.follow((manifest.from, manifest.to), &merged, adopted, &state).await?;
        }
        if let Some(after) = &changes_after {
            self.follow_changes(&self.changed_by(&changes, &manifest.state.waiting), after).await?;
        }
        Failpoint::EpochFolded.reached();
        let mut failures = Vec::new();
        let postings = self.rate(&manifest, changes_after.as_ref(), &mut state, &mut failures).await?;
        Failpoint::EpochRated.reached();
        if !postings.is_empty() {
            self.tables.charges.append(&postings, APPLICATION, epoch).await?;
            Failpoint::EpochChargesAppended.reached();
        }
        tracing::debug!(epoch, elapsed = ?started.elapsed(), "charges stored");
        self.close_running(&manifest, &state).await;
        let times = Times::of(&merged, &parts, changes_after.as_ref());
        self.complete(&manifest, state, changes_after).await?;
        self.note_running(&manifest, &times);
        if let Err(error) = self.drain(frames).await {
            tracing::error!(%error, epoch, "the epoch is in the lake, and its part of the log is not let go of; it is tried again first of all");
        }
        let count = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum();
        let corrections = postings
            .iter()
            .filter_map(|batch| batch.column_by_name("class"))
            .map(|column| column.as_string::<i32>().iter().flatten().filter(|class| *class == "correction").count())
            .sum();
        metrics::histogram!("ratemill_epoch_duration_seconds").record(started.elapsed());
        metrics::counter!("ratemill_epochs_total").increment(1);
        Ok(EpochReport {
            epoch,
            usage: count(&usage) + parts.iter().map(|part| part.events()).sum::<usize>(),
            rejected: count(&rejected),
            changes: count(&changes),
            windows: manifest.tasks.len(),
            charges: count(&postings),
            corrections,
            failures,
        })
    }

    /// Appends what the frames of an epoch hold to the tables: usage, rejected records, voids and amendments, adopted files, claims.
    async fn store(
        &mut self,
        epoch: i64,
        frames: &[Frame],
        [usage, rejected, changes]: [&[RecordBatch]; 3],
        parts: &[Arc<Part>],
    ) -> Result<(), EpochError> {
        let mut table = self.tables.usage.clone();
        self.answering(table.append(usage, APPLICATION, epoch)).await?;
        self.tables.usage = table;
        Failpoint::EpochUsageAppended.reached();
        if !rejected.is_empty() {
            self.tables.rejected.append(rejected, APPLICATION, epoch).await?;
            Failpoint::EpochRejectedAppended.reached();
        }
        if !changes.is_empty() {
            self.tables.changes.append(changes, APPLICATION, epoch).await?;
            Failpoint::EpochChangesAppended.reached();
        }
        self.store_adopted(epoch, parts).await?;
        let claims = claims_batch(frames).map_err(|source| EpochError::Arrow { epoch, source })?;
        if claims.num_rows() > 0 {
            self.tables.files.append(&[claims], APPLICATION, epoch).await?;
            Failpoint::EpochFilesAppended.reached();
        }
        Ok(())
    }

    async fn complete(&mut self, manifest: &Manifest, state: EngineState, changes_after: Option<Changes>) -> Result<(), EpochError> {
        let completion = Completion {
            epoch: manifest.epoch,
            completed_at: time::now(),
            versions: TableVersions {
                usage: self.tables.usage.version(),
                rejected: self.tables.rejected.version(),
                files: self.tables.files.version(),
                charges: self.tables.charges.version(),
                changes: self.tables.changes.version(),
                adopted: self.tables.adopted.version(),
                running_charges: self.running.table.version(),
            },
            state: state.clone(),
        };
        let name = completion_name(manifest.epoch);
        Failpoint::EpochBeforeCompletion.reached();
        self.lake.create(&name, encode(&name, &completion)?).await?;
        Failpoint::EpochCompleted.reached();
        self.last = manifest.epoch;
        self.folds.keep_open(&state);
        self.state = state;
        *self.tail.get_mut() = Tail::default();
        if let Some(changes) = changes_after {
            self.changes = changes;
        }
        // Whatever becomes of what follows, it is not executed again: the state is the one after it.
        self.unfinished = None;
        self.undrained = Some(manifest.clone());
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("ratemill_last_epoch_timestamp_seconds").set((completion.completed_at / 1_000_000) as f64);
        Ok(())
    }

    /// Whose lake it is.
    #[must_use]
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Gives the lake up.
    ///
    /// # Errors
    /// [`EpochError::Lake`].
    pub async fn close(self) -> Result<(), EpochError> {
        // A start that misses them reads them back from the lake.
        self.unsaved_keys.save(&self.dedup_folder);
        let drained = self.progress.position.load(Ordering::Acquire) <= self.state.position;
        self.ownership.release(drained).await?;
        Ok(())
    }
}
