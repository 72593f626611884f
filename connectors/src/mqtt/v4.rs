//! MQTT 3.1.1: connecting and reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rumqttc_v4::{
    AckMode, AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet, Publish, QoS,
    SubscribeFilterInput, SubscribeReasonCode, Transport,
};
use tokio::sync::mpsc;

use super::config::{MqttConfig, MqttError};
use super::delivery::{Ack, Acker, Client, Delivery, Ticket};
use super::tls;
use super::{Backoff, PACKET_BYTES_MAX};

pub(super) fn connect(config: &MqttConfig) -> Result<(AsyncClient, EventLoop), MqttError> {
    let wrong = |message: String| MqttError::Setting { name: config.name.clone(), message };
    let (host, port, with_tls) = config.broker()?;
    let mut options = MqttOptions::new(config.client_id.clone(), (host, port));
    if with_tls {
        options.set_transport(Transport::tls_with_config(tls::configuration(config)?));
    }
    if let Some(username) = &config.username {
        options.set_credentials(username.clone(), config.password.clone().unwrap_or_default());
    }
    options
        .set_keep_alive(config.keep_alive_seconds)
        .set_max_packet_size(PACKET_BYTES_MAX as usize, PACKET_BYTES_MAX as usize)
        .set_inflight(16)
        .set_ack_mode(AckMode::Manual);
    options.try_set_clean_session(false).map_err(|error| wrong(error.to_string()))?;
    let (client, mut events) = AsyncClient::builder(options).unbounded().try_build().map_err(|error| wrong(error.to_string()))?;
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(Duration::from_secs(10).as_secs());
    events.set_network_options(network);
    Ok((client, events))
}

fn delivery(publish: Publish, client: &AsyncClient, generation: u64) -> Delivery {
    let ticket = client.prepare_ack(&publish).map(|ack| Ticket { generation, ack: Ack::V4(ack) });
    Delivery { topic: publish.topic, payload: publish.payload, content_type: None, properties: Vec::new(), ticket }
}

pub(super) async fn poll(
    config: MqttConfig,
    mut events: EventLoop,
    acker: Acker,
    deliveries: mpsc::Sender<Delivery>,
    stopping: Arc<AtomicBool>,
) {
    let Client::V4(client) = acker.client.clone() else { return };
    let name = config.name.as_str();
    let qos = if config.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let mut backoff = Backoff::default();
    let connected = metrics::gauge!("ratemill_mqtt_connected", "connector" => config.name.clone());
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(answer))) => {
                backoff.connected();
                connected.set(1.0);
                tracing::info!(connector = name, session_present = answer.session_present, "connected to the broker");
                subscribe(&client, &config, qos);
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                // Room for every message that may be unacknowledged, so that this wait is for slow decoding only.
                if deliveries.send(delivery(publish, &client, acker.generation())).await.is_err() {
                    break;
                }
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(ConnectionError::RequestsDone) => break,
            Ok(_) => {}
            Err(error) => {
                connected.set(0.0);
                acker.next_generation();
                events.clean();
                events.state.events.clear();
                if stopping.load(Ordering::Acquire) || deliveries.is_closed() {
                    break;
                }
                metrics::counter!("ratemill_mqtt_connection_errors_total", "connector" => config.name.clone()).increment(1);
                tracing::warn!(connector = name, %error, "lost the broker; trying again");
                backoff.pause().await;
            }
        }
    }
    connected.set(0.0);
}

fn subscribe(client: &AsyncClient, config: &MqttConfig, qos: QoS) {
    let filters = config.topics.iter().map(|topic| SubscribeFilterInput::new(topic.as_str(), qos));
    let (name, topics) = (config.name.clone(), config.topics.clone());
    match client.try_subscribe_many_tracked(filters) {
        Err(error) => tracing::error!(connector = name, %error, "could not subscribe"),
        Ok(notice) => {
            tokio::spawn(async move {
                match notice.wait_async().await {
                    Err(error) => tracing::warn!(connector = name, %error, "the subscription was not answered"),
                    Ok(answer) => {
                        for (topic, code) in topics.iter().zip(&answer.return_codes) {
                            match code {
                                SubscribeReasonCode::Success(granted) if *granted as u8 >= qos as u8 => {
                                    tracing::info!(connector = name, topic, "subscribed");
                                }
                                SubscribeReasonCode::Success(_) => {
                                    tracing::error!(connector = name, topic, "the broker grants only QoS 0: messages may be lost");
                                }
                                refused => tracing::error!(connector = name, topic, ?refused, "the broker refuses the subscription"),
                            }
                        }
                    }
                }
            });
        }
    }
}
