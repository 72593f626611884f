//! A store that fails as object stores do, for tests: `RATEMILL_STORE_FAULTS=SEED:PERMILLE` lets so many of a thousand
//! requests fail, be delayed, do their work and lose the answer, or be sent twice and answered for the second time.
//! Only builds with debug assertions have it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, RenameOptions, Result,
};

/// Longest delay of a request.
const DELAY_MS_MAX: u64 = 30;
/// After so many requests faults are half as many, after twice as many a third.
const THINNING: u64 = 1000;

/// A store between the engine and the real one.
#[derive(Debug)]
pub(super) struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    dice: Arc<Dice>,
}

impl FaultyStore {
    /// `inner` itself, unless a test asked for faults.
    pub(super) fn around(inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        let Ok(text) = std::env::var("RATEMILL_STORE_FAULTS") else { return inner };
        let numbers = text.split_once(':').and_then(|(seed, permille)| Some((seed.parse().ok()?, permille.parse().ok()?)));
        let Some((seed, permille)) = numbers else {
            eprintln!("error: RATEMILL_STORE_FAULTS={text} is not SEED:PERMILLE");
            std::process::exit(2);
        };
        Arc::new(Self { inner, dice: Arc::new(Dice { seed, permille, thrown: AtomicU64::new(0) }) })
    }
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It is not done, and an error comes back.
    Failed,
    /// It is done later.
    Delayed(Duration),
    /// It is done, and an error comes back.
    AnswerLost,
    /// It is done, and done again: the second answer comes back.
    Repeated,
}

#[derive(Debug)]
struct Dice {
    seed: u64,
    permille: u64,
    thrown: AtomicU64,
}

impl Dice {
    /// SplitMix64: the same seed gives the same faults for the same order of requests. Faults become fewer with the requests,
    /// so that every run comes to its end.
    fn throw(&self) -> Fault {
        let thrown = self.thrown.fetch_add(1, Ordering::Relaxed);
        let mut z = self.seed.wrapping_add(thrown.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        if z % 1000 >= self.permille / (1 + thrown / THINNING) {
            return Fault::None;
        }
        match (z >> 32) % 4 {
            0 => Fault::Failed,
            1 => Fault::Delayed(Duration::from_millis((z >> 40) % DELAY_MS_MAX)),
            2 => Fault::AnswerLost,
            _ => Fault::Repeated,
        }
    }

    /// Does a request with whatever befalls it.
    async fn befall<T, F: Future<Output = Result<T>>>(&self, request: impl Fn() -> F) -> Result<T> {
        match self.throw() {
            Fault::None => request().await,
            Fault::Failed => Err(broken("the request was lost")),
            Fault::Delayed(delay) => {
                tokio::time::sleep(delay).await;
                request().await
            }
            Fault::AnswerLost => {
                // Whatever it came to, nobody is told.
                drop(request().await);
                Err(broken("the answer was lost"))
            }
            Fault::Repeated => {
                drop(request().await);
                request().await
            }
        }
    }
}

fn broken(what: &str) -> Error {
    Error::Generic { store: "faulty store", source: what.into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.dice.befall(|| self.inner.put_opts(location, payload.clone(), options.clone())).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.dice.befall(|| self.inner.put_multipart_opts(location, options.clone())).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.dice.befall(|| self.inner.get_opts(location, options.clone())).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.dice.befall(|| self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, dice) = (Arc::clone(&self.inner), Arc::clone(&self.dice));
        let deleted = locations.and_then(move |location| {
            let (inner, dice) = (Arc::clone(&inner), Arc::clone(&dice));
            async move {
                let delete = || async {
                    let one = stream::once(std::future::ready(Ok(location.clone()))).boxed();
                    inner.delete_stream(one).try_collect::<Vec<_>>().await
                };
                dice.befall(delete).await.map(|_| location.clone())
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (listed, dice) = (self.inner.list(prefix), Arc::clone(&self.dice));
        let befallen = async move { dice.befall(|| std::future::ready(Ok(()))).await };
        befallen
            .map(|outcome| outcome.map_or_else(|error| stream::once(std::future::ready(Err(error))).boxed(), |()| listed))
            .flatten_stream()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.dice.befall(|| self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.dice.befall(|| self.inner.copy_opts(from, to, options.clone())).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.dice.befall(|| self.inner.rename_opts(from, to, options.clone())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_befalls_and_the_same_seed_repeats_them() {
        let thrown = |seed| {
            let dice = Dice { seed, permille: 200, thrown: AtomicU64::new(0) };
            (0..1000).map(|_| dice.throw()).collect::<Vec<_>>()
        };
        let faults = thrown(7);
        assert_eq!(faults, thrown(7));
        assert_ne!(faults, thrown(8));
        let count = |is: fn(&Fault) -> bool| faults.iter().filter(|fault| is(fault)).count();
        let counted = [
            count(|fault| *fault == Fault::Failed),
            count(|fault| matches!(fault, Fault::Delayed(_))),
            count(|fault| *fault == Fault::AnswerLost),
            count(|fault| *fault == Fault::Repeated),
        ];
        assert!(counted.iter().all(|count| (20..100).contains(count)), "{counted:?}");
    }
}
