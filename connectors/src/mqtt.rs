//! MQTT 3.1.1 and 5: QoS 1, persistent session, and a PUBACK only after the usage log has the message.
//!
//! A poll task reads the connection and never waits for the log; a second task decodes, submits and acknowledges.
//! An acknowledgement belongs to one connection: a packet id of an older one is never acknowledged, since the broker
//! may have given it to another message.

mod config;
mod delivery;
mod publisher;
mod template;
mod tls;
mod v4;
mod v5;

pub use config::{MqttConfig, MqttError, MqttVersion, Payload};
pub use delivery::bind;
pub use publisher::{PublishError, publish};
pub use template::{TemplateError, TopicTemplate};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::decode::DecodeContext;
use crate::intake::Intake;
use delivery::{Acker, Deliveries, Receiver};

/// A configured MQTT connector, checked and ready to run.
#[derive(Debug)]
pub struct Mqtt {
    config: MqttConfig,
    receiver: Receiver,
}

impl Mqtt {
    /// Checks the configuration.
    ///
    /// # Errors
    /// [`MqttError`] names the connector and what would be valid.
    pub fn new(config: MqttConfig, context: DecodeContext, intake: Intake) -> Result<Self, MqttError> {
        config.check()?;
        let receiver = Receiver::new(&config, context, intake)?;
        Ok(Self { config, receiver })
    }

    /// Receives until `stop`: then finishes what is under way, acknowledges it and disconnects.
    ///
    /// # Errors
    /// [`MqttError`] when the client cannot be set up; a lost connection is no error, it is tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), MqttError> {
        let (sender, deliveries) = mpsc::channel(usize::from(self.config.receive_maximum));
        let stopping = Arc::new(AtomicBool::new(false));
        let name = self.config.name.clone();
        let (acker, poll) = match self.config.version {
            MqttVersion::V4 => {
                let (client, events) = v4::connect(&self.config)?;
                let acker = Acker::new(delivery::Client::V4(client));
                (acker.clone(), tokio::spawn(v4::poll(self.config, events, acker, sender, Arc::clone(&stopping))))
            }
            MqttVersion::V5 => {
                let (client, events) = v5::connect(&self.config)?;
                let acker = Acker::new(delivery::Client::V5(client));
                (acker.clone(), tokio::spawn(v5::poll(self.config, events, acker, sender, Arc::clone(&stopping))))
            }
        };
        self.receiver.run(Deliveries { deliveries }, &acker, &stop).await;
        stopping.store(true, Ordering::Release);
        acker.disconnect();
        if tokio::time::timeout(Duration::from_secs(5), poll).await.is_err() {
            tracing::warn!(connector = %name, "the broker did not take the disconnect within 5 seconds");
        }
        Ok(())
    }
}

/// The largest packet of the protocol: a message beyond the record limit is read, rejected and acknowledged, since the
/// broker would deliver it again and again, or drop it without a word.
const PACKET_BYTES_MAX: u32 = 268_435_455;

/// Doubling pauses between attempts to connect, from 200 ms to 30 s; short again after ten healthy seconds.
struct Backoff {
    pause: Duration,
    connected_at: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: Self::FIRST, connected_at: None }
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);
    const HEALTHY: Duration = Duration::from_secs(10);

    fn connected(&mut self) {
        self.connected_at = Some(Instant::now());
    }

    async fn pause(&mut self) {
        if self.connected_at.take().is_some_and(|since| since.elapsed() >= Self::HEALTHY) {
            self.pause = Self::FIRST;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(Self::LONGEST);
    }
}
