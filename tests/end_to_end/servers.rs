//! Real servers on loopback, started by the test that needs them and stopped with it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::engine::{try_request, wait};

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The Python environment that `tests/run.sh` makes.
pub fn venv() -> PathBuf {
    let given = std::env::var_os("RATEMILL_TEST_VENV").map(PathBuf::from);
    let path = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-venv"));
    assert!(path.join("bin/python").exists(), "{} is not there: run tests/run.sh, which installs the servers", path.display());
    path
}

/// Runs a Python program; returns its stdout.
pub fn python(program: &str, arguments: &[&str], environment: &[(String, String)]) -> String {
    let output =
        Command::new(venv().join("bin/python")).arg("-c").arg(program).args(arguments).envs(environment.iter().cloned()).output().unwrap();
    assert!(output.status.success(), "python failed:\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Eclipse Mosquitto.
pub struct Mosquitto {
    folder: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl Mosquitto {
    /// Anyone may connect; sessions survive a restart; nothing is dropped.
    pub fn start() -> Self {
        Self::start_with("allow_anonymous true\n", |_| {})
    }

    /// With these lines in the listener's configuration; `prepare` may put files into the broker's folder.
    pub fn start_with(listener: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The broker leaves root for its own user, who must be able to read and write here.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(folder.path(), mode).unwrap();
        prepare(folder.path());
        let port = free_port();
        let path = folder.path().display();
        let config = format!(
            "per_listener_settings false\npersistence true\npersistence_location {path}/\nautosave_interval 1\nautosave_on_changes false\n\
             max_inflight_messages 1000\nmax_queued_messages 0\nlistener {port} 127.0.0.1\n{}",
            listener.replace("DIR", &path.to_string())
        );
        fs::write(folder.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Self { folder, port, child: None };
        broker.spawn();
        broker
    }

    fn spawn(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("broker.log")).unwrap();
        let program = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
        let child = Command::new(program)
            .arg("-c")
            .arg(self.folder.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait("the broker listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// Stops the broker in order, so that it saves its sessions, and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.spawn();
    }

    /// The same with nothing left of the sessions.
    pub fn forget(&mut self) {
        self.stop();
        fs::remove_file(self.folder.path().join("mosquitto.db")).unwrap();
        self.spawn();
    }

    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        child.wait().unwrap();
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Publishes one message per line at this QoS with the broker's own client.
    pub fn publish(&self, topic: &str, lines: &str, qos: u8, options: &[&str]) {
        use std::io::Write;
        let mut child = Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-q", &qos.to_string(), "-t", topic, "-l"])
            .args(options)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "mosquitto_pub failed");
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// SeaweedFS as an S3 server.
pub struct S3 {
    folder: PathBuf,
    ports: [u16; 8],
    child: Child,
}

impl S3 {
    /// A server of its own, with the bucket `lake`.
    pub fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("ratemill-s3-{}-{}", std::process::id(), free_port()));
        fs::create_dir_all(&folder).unwrap();
        let config = r#"{"identities":[{"name":"test","credentials":[{"accessKey":"testkey","secretKey":"testsecret"}],"actions":["Admin","Read","Write","List","Tagging"]}]}"#;
        fs::write(folder.join("s3.json"), config).unwrap();
        let ports = std::array::from_fn(|_| free_port());
        let server = Self { child: Self::spawn(&folder, &ports), folder, ports };
        server.wait_ready();
        let program = "import boto3,sys; boto3.client('s3', endpoint_url=sys.argv[1], aws_access_key_id='testkey', aws_secret_access_key='testsecret', region_name='us-east-1').create_bucket(Bucket='lake')";
        python(program, &[&server.endpoint()], &[]);
        server
    }

    fn spawn(folder: &Path, ports: &[u16; 8]) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("s3.log")).unwrap();
        let data = folder.join("data");
        fs::create_dir_all(&data).unwrap();
        let [master, volume, filer, s3, master_grpc, volume_grpc, filer_grpc, s3_grpc] = ports;
        Command::new(venv().join("bin/weed"))
            .arg("server")
            .arg(format!("-dir={}", data.display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-master.telemetry=false", "-master.electionTimeout=1s"])
            .args(["-volume.max=20", "-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .args([
                format!("-filer.localSocket={}", folder.join("filer.sock").display()),
                format!("-s3.localSocket={}", folder.join("s3.sock").display()),
            ])
            .args([
                format!("-master.port={master}"),
                format!("-volume.port={volume}"),
                format!("-filer.port={filer}"),
                format!("-s3.port={s3}"),
            ])
            .args([
                format!("-master.port.grpc={master_grpc}"),
                format!("-volume.port.grpc={volume_grpc}"),
                format!("-filer.port.grpc={filer_grpc}"),
                format!("-s3.port.grpc={s3_grpc}"),
            ])
            .arg(format!("-s3.config={}", folder.join("s3.json").display()))
            .env("WEED_MASTER_VOLUME_GROWTH_COPY_1", "1")
            .env("HOME", folder)
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn wait_ready(&self) {
        let healthy =
            || try_request(&format!("127.0.0.1:{}", self.ports[3]), "GET", "/healthz", &[], b"").is_some_and(|(status, _)| status == 200);
        let volumes = || {
            let answer = try_request(&format!("127.0.0.1:{}", self.ports[0]), "GET", "/dir/status", &[], b"");
            answer.is_some_and(|(_, body)| body.contains(&format!("127.0.0.1:{}", self.ports[1])))
        };
        wait("the S3 server is ready", || healthy() && volumes());
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[3])
    }

    /// The standard variables, for Ratemill and for Python.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT", self.endpoint()),
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "testkey".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "testsecret".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Takes the server away for as long as `work` runs.
    pub fn away(&mut self, work: impl FnOnce()) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        work();
        self.child = Self::spawn(&self.folder, &self.ports);
        self.wait_ready();
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
