//! Questions for running charges: answered between two epochs, and while one waits for the lake.

use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::run::{EpochError, Epochs};
use super::running::running_rows;

/// A question for running charges.
#[derive(Debug)]
pub struct RunningQuestion {
    /// One rule; `None` is all.
    pub rule: Option<String>,
    /// One customer, beside whose charges those of others may be there; `None` is all.
    pub customer: Option<String>,
    /// The charges, or what failed.
    pub answer: oneshot::Sender<Result<Vec<RecordBatch>, Unanswered>>,
}

/// Why a question has no answer, in words.
#[derive(Debug)]
pub enum Unanswered {
    /// It will have one later.
    Later(String),
    /// It cannot be answered.
    Failed(String),
}

/// The questions that wait; none in a batch.
#[derive(Debug, Default)]
pub(super) struct Questions {
    asked: Mutex<Option<mpsc::Receiver<RunningQuestion>>>,
    answered: AtomicU64,
}

impl Questions {
    /// How many were answered, or are being answered.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for the next one. Nothing is lost when the caller stops waiting.
    async fn next(&self) -> RunningQuestion {
        let mut asked = self.asked.lock().await;
        match asked.as_mut() {
            Some(asked) => match asked.recv().await {
                Some(question) => question,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

impl Epochs {
    /// Answers these questions from now on: when [told to](Self::answer), and while an epoch waits for the lake. `None` answers
    /// none; those who wait are told.
    pub fn listen(&mut self, asked: Option<mpsc::Receiver<RunningQuestion>>) {
        *self.questions.asked.get_mut() = asked;
    }

    /// Waits for the next question. Nothing is lost when the caller stops waiting.
    pub async fn question(&self) -> RunningQuestion {
        self.questions.next().await
    }

    /// Answers with the running charges of a rule, or of all.
    pub async fn answer(&self, question: RunningQuestion) {
        if question.answer.is_closed() {
            return;
        }
        self.questions.answered.fetch_add(1, Ordering::Relaxed);
        let started = std::time::Instant::now();
        let charges = self.running_of(question.rule.as_deref(), question.customer.as_deref()).await.map_err(|error| match error {
            EpochError::Behind { .. } => Unanswered::Later(error.to_string()),
            error => Unanswered::Failed(error.to_string()),
        });
        let rows = charges.and_then(|charges| running_rows(&charges).map_err(|error| Unanswered::Failed(error.to_string())));
        metrics::histogram!("ratemill_running_charges_duration_seconds").record(started.elapsed());
        // Who asked may be gone.
        let _ = question.answer.send(rows);
    }

    /// Does some work and answers questions meanwhile, from what is known before it.
    pub(super) async fn answering<T>(&self, work: impl Future<Output = T>) -> T {
        let done = CancellationToken::new();
        let work = async {
            let result = work.await;
            done.cancel();
            result
        };
        let answers = async {
            loop {
                let question = tokio::select! {
                    biased;
                    () = done.cancelled() => return,
                    question = self.question() => question,
                };
                self.answer(question).await;
            }
        };
        tokio::join!(work, answers).0
    }

    /// Does some work on a thread of its own and answers questions meanwhile.
    pub(super) async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, EpochError> {
        self.answering(tokio::task::spawn_blocking(work)).await.map_err(|error| EpochError::Thread(error.to_string()))
    }
}
