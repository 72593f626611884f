//! Publishing at QoS 1, for the demo and for measurements.

use rumqttc_v5::{AsyncClient, Event, MqttOptions, NetworkOptions, Packet, PublishOptions};
use url::Url;

/// Why messages were not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The URL is not one of a broker without TLS.
    #[error("`{0}` is not mqtt://host[:port]")]
    Url(String),
    /// The broker did not take them.
    #[error("mqtt: {0}")]
    Broker(String),
}

/// Publishes (topic, payload) pairs over MQTT 5 and returns once the broker has acknowledged all of them.
///
/// # Errors
/// [`PublishError`].
pub async fn publish(url: &str, messages: Vec<(String, Vec<u8>)>) -> Result<(), PublishError> {
    let failed = |error: &dyn std::fmt::Display| PublishError::Broker(error.to_string());
    let parsed = Url::parse(url).ok().filter(|url| url.scheme() == "mqtt").ok_or_else(|| PublishError::Url(url.to_owned()))?;
    let host = parsed.host_str().ok_or_else(|| PublishError::Url(url.to_owned()))?;
    let client_id = format!("ratemill-publisher-{}-{:p}", std::process::id(), &raw const parsed);
    let mut options = MqttOptions::new(client_id, (host, parsed.port().unwrap_or(1883)));
    options.set_outgoing_inflight_upper_limit(1000).set_max_request_batch(128).set_read_batch_size(128).set_max_packet_size(Some(1 << 20));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, mut events) = AsyncClient::builder(options).capacity(4096).try_build().map_err(|error| failed(&error))?;
    let count = messages.len();
    let feeder = {
        let client = client.clone();
        tokio::spawn(async move {
            for (topic, payload) in messages {
                if client.publish(topic, payload, PublishOptions::at_least_once()).await.is_err() {
                    break;
                }
            }
        })
    };
    let mut acknowledged = 0;
    while acknowledged < count {
        if let Event::Incoming(Packet::PubAck(_)) = events.poll().await.map_err(|error| failed(&error))? {
            acknowledged += 1;
        }
    }
    feeder.await.map_err(|error| failed(&error))?;
    if client.disconnect().await.is_ok() {
        while events.poll().await.is_ok() {}
    }
    Ok(())
}
