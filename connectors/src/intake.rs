//! The one door into the engine: a bounded queue of submissions, each answered once it is durable.

use std::sync::Arc;

use ratemill_schemas::files::FileClaim;
use ratemill_schemas::{AdoptedFile, EventKey, UsageBatch, Verdict};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Name of a configured connector: what a watermark belongs to.
pub type InputName = Arc<str>;

/// Submissions that may wait in the queue, whatever their size.
const QUEUE_SUBMISSIONS_MAX: usize = 4096;

/// Events or claims on their way into the usage log.
#[derive(Debug)]
pub struct Submission {
    /// The connector that it came by.
    pub input: InputName,
    /// Decoded usage and rejections.
    pub usage: UsageBatch,
    /// Files whose rows are all durable once this submission is.
    pub claims: Vec<FileClaim>,
    /// A file that is usage as it is.
    pub adopted: Option<AdoptedRows>,
    /// Event times of historical usage move no watermark.
    pub historical: bool,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Receipt, IntakeError>>,
    /// Room in the queue, given back when the submission is dropped.
    pub room: OwnedSemaphorePermit,
}

/// A file that the lake keeps, and the keys of its rows.
#[derive(Debug)]
pub struct AdoptedRows {
    /// The file.
    pub file: AdoptedFile,
    /// One for each of its rows, in order.
    pub keys: Vec<EventKey>,
}

/// The answer to a durable submission.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The log that holds it.
    pub log_id: Arc<str>,
    /// Position in the log up to which everything of this submission is durable.
    pub position: i64,
    /// One verdict per row of the submitted batch, in order; of an adopted file, those that are not accepted.
    pub verdicts: Vec<Verdict>,
}

/// Why a submission was not taken. Nothing of it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// The queue, the log or its disk is full: send again later.
    #[error("the usage log cannot keep up, or has reached its quota or the end of its disk; send again later")]
    Full,
    /// The engine is going down or has failed.
    #[error("the engine is stopping; send again later")]
    Stopped,
}

/// A handle to submit with; clones share one queue.
#[derive(Debug, Clone)]
pub struct Intake {
    queue: mpsc::Sender<Submission>,
    room: Arc<Semaphore>,
    room_bytes: usize,
}

/// How full a queue is.
#[derive(Debug, Clone)]
pub struct QueueRoom {
    room: Arc<Semaphore>,
    capacity: usize,
}

impl QueueRoom {
    /// Bytes that wait and are not acknowledged.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.capacity.saturating_sub(self.room.available_permits())
    }

    /// Bytes that the queue takes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Intake {
    /// A queue bounded to about `room_bytes` of decoded usage, and its receiving end.
    #[must_use]
    pub fn bounded(room_bytes: usize) -> (Self, mpsc::Receiver<Submission>) {
        let (queue, receiver) = mpsc::channel(QUEUE_SUBMISSIONS_MAX);
        let room_bytes = room_bytes.clamp(1, Semaphore::MAX_PERMITS);
        (Self { queue, room: Arc::new(Semaphore::new(room_bytes)), room_bytes }, receiver)
    }

    /// Looks at how full the queue is, without holding it open.
    #[must_use]
    pub fn room(&self) -> QueueRoom {
        QueueRoom { room: Arc::clone(&self.room), capacity: self.room_bytes }
    }

    /// Submits, waiting while the queue is full; returns once the batch is durable.
    ///
    /// # Errors
    /// [`IntakeError::Full`] when the log has reached its quota, [`IntakeError::Stopped`] when the engine is gone.
    pub async fn submit(
        &self,
        input: &InputName,
        usage: UsageBatch,
        claims: Vec<FileClaim>,
        historical: bool,
    ) -> Result<Receipt, IntakeError> {
        let room = Arc::clone(&self.room).acquire_many_owned(self.cost(&usage)).await.map_err(|_| IntakeError::Stopped)?;
        self.enqueue(input, usage, (claims, None), historical, room).await
    }

    /// Submits a file that is usage as it is; returns once its name and range are durable. The verdicts are those of rows that
    /// are no new usage; a conflict among them says that nothing was taken, and the rows have to be submitted.
    ///
    /// # Errors
    /// As [`Intake::submit`].
    pub async fn adopt(&self, input: &InputName, none: UsageBatch, rows: AdoptedRows, historical: bool) -> Result<Receipt, IntakeError> {
        let bytes = rows.keys.len() * size_of::<EventKey>();
        let cost = u32::try_from(bytes.clamp(1, self.room_bytes)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(cost).await.map_err(|_| IntakeError::Stopped)?;
        self.enqueue(input, none, (Vec::new(), Some(rows)), historical, room).await
    }

    /// Submits, or says at once that the queue is full.
    ///
    /// # Errors
    /// As [`Intake::submit`].
    pub async fn try_submit(&self, input: &InputName, usage: UsageBatch) -> Result<Receipt, IntakeError> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(self.cost(&usage)).map_err(|_| IntakeError::Full)?;
        self.enqueue(input, usage, (Vec::new(), None), false, room).await
    }

    async fn enqueue(
        &self,
        input: &InputName,
        usage: UsageBatch,
        (claims, adopted): (Vec<FileClaim>, Option<AdoptedRows>),
        historical: bool,
        room: OwnedSemaphorePermit,
    ) -> Result<Receipt, IntakeError> {
        let (reply, answer) = oneshot::channel();
        let submission = Submission { input: Arc::clone(input), usage, claims, adopted, historical, reply, room };
        self.queue.send(submission).await.map_err(|_| IntakeError::Stopped)?;
        answer.await.map_err(|_| IntakeError::Stopped)?
    }

    /// Submits that weigh more than the whole queue still pass, alone.
    fn cost(&self, usage: &UsageBatch) -> u32 {
        let rejected: usize = usage.rejections.iter().map(|rejection| rejection.raw.len() + 256).sum();
        let changes = usage.changes.as_ref().map_or(0, arrow::array::RecordBatch::get_array_memory_size);
        let bytes = usage.batch.get_array_memory_size() + changes + rejected;
        u32::try_from(bytes.clamp(1, self.room_bytes)).unwrap_or(u32::MAX)
    }
}
