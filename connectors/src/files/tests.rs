#![allow(clippy::unwrap_used)]
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use ratemill_schemas::{EventHasher, UsageSchema, Verdict};
use tokio::sync::mpsc;

use super::*;
use crate::decode::DecodeContext;
use crate::intake::{Intake, Receipt, Submission};

/// A store whose read number `failing` fails.
#[derive(Debug)]
struct Failing {
    inner: InMemory,
    failing: usize,
    reads: AtomicUsize,
}

impl std::fmt::Display for Failing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Failing({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == self.failing {
            return Err(object_store::Error::Generic { store: "failing store", source: "operation timed out".into() });
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, object_store::Result<Path>>) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Acknowledges what is submitted; returns it once there is no more.
async fn log(mut queue: mpsc::Receiver<Submission>) -> (usize, usize, Vec<FileClaim>) {
    let (mut rows, mut rejected, mut claims) = (0, 0, Vec::new());
    while let Some(submission) = queue.recv().await {
        let new = submission.usage.records() - submission.usage.rejections.len();
        rows += new;
        rejected += submission.usage.rejections.len();
        claims.extend(submission.claims);
        let _ = submission.reply.send(Ok(Receipt { log_id: "log".into(), position: 0, verdicts: vec![Verdict::Accepted; new] }));
    }
    (rows, rejected, claims)
}

/// Two looks at a drop with one file, of which the first finds a store that fails in the middle of it: rows, rejections and
/// claims after each.
async fn two_looks(name: &str, content: Vec<u8>) -> [(usize, usize, Vec<FileClaim>); 2] {
    assert!(content.len() > 3 * 4096, "a file of several parts");
    let store = Arc::new(Failing { inner: InMemory::new(), failing: 2, reads: AtomicUsize::new(0) });
    store.put(&Path::from(format!("drop/{name}")), content.into()).await.unwrap();
    let context = DecodeContext {
        schema: Arc::new(UsageSchema::new(Vec::new())),
        hasher: EventHasher::new([7; 2]),
        future_skew: 0,
        depth_max: 32,
        record_bytes_max: 1 << 20,
    };
    let mut config = FilesConfig::named("drop", "drop");
    config.settle = "0 seconds".to_owned();
    let mut looks = Vec::new();
    let mut claims = Claims::new();
    for _ in 0..2 {
        let (intake, queue) = Intake::bounded(1 << 20);
        let logged = tokio::spawn(log(queue));
        let reader = FileReader::new(&config, context.clone(), intake, 1 << 20).unwrap();
        let mut drop = FileDrop::new(&config, reader, Arc::clone(&store) as Arc<dyn ObjectStore>, Path::from("drop"), claims).unwrap();
        drop.scan(&CancellationToken::new()).await.unwrap();
        claims = std::mem::take(&mut drop.claims);
        std::mem::drop(drop);
        looks.push(logged.await.unwrap());
    }
    looks.try_into().unwrap()
}

fn events(count: usize) -> String {
    (0..count).fold(String::new(), |mut lines, number| {
        let quantity = number.wrapping_mul(0x9e37_79b9) % 100_000;
        let _ = writeln!(
            lines,
            r#"{{"specversion":"1.0","source":"s","id":"{number}","type":"kwh","subject":"m{quantity}","time":"2026-09-01T00:00:00Z","data":{{"quantity":"{quantity}"}}}}"#
        );
        lines
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_again_when_its_store_fails_in_the_middle() {
    let lines = events(4000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines.as_bytes()).unwrap();
    let files = [
        ("a.ndjson", lines.clone().into_bytes()),
        ("a.ndjson.gz", gzip.finish().unwrap()),
        ("a.ndjson.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap()),
    ];
    for (name, content) in files {
        let [(_, rejected, claims), again] = two_looks(name, content).await;
        assert_eq!((rejected, claims), (0, vec![]), "{name}");
        assert_eq!((again.0, again.1), (4000, 0), "{name}");
        assert_eq!(again.2.iter().map(|claim| (claim.rows, claim.rejected)).collect::<Vec<_>>(), [(4000, 0)], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parquet_file_is_read_again_when_its_store_fails_in_the_middle() {
    let [(_, rejected, claims), (_, damaged, again)] = two_looks("a.parquet", vec![0; 20_000]).await;
    assert_eq!((rejected, claims), (0, vec![]));
    // What the store does give is no Parquet file.
    assert_eq!((damaged, again.len()), (1, 1));
}
