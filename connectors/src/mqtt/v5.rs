//! MQTT 5: connecting and reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rumqttc_v5::{
    AckMode, AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet, Publish, QoS,
    SubscribeFilterInput, SubscribeReasonCode, Transport,
};
use tokio::sync::mpsc;

use super::config::{MqttConfig, MqttError};
use super::delivery::{Ack, Acker, Client, Delivery, Ticket};
use super::tls;
use super::{Backoff, PACKET_BYTES_MAX};

pub(super) fn connect(config: &MqttConfig) -> Result<(AsyncClient, EventLoop), MqttError> {
    let (host, port, with_tls) = config.broker()?;
    let mut options = MqttOptions::new(config.client_id.clone(), (host, port));
    if with_tls {
        options.set_transport(Transport::tls_with_config(tls::configuration(config)?));
    }
    if let Some(username) = &config.username {
        options.set_credentials(username.clone(), config.password.clone().unwrap_or_default());
    }
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_keep_alive(config.keep_alive_seconds)
        .set_clean_start(false)
        .set_session_expiry_interval(Some(config.session_expiry_seconds))
        .set_receive_maximum(Some(config.receive_maximum))
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        // Only acknowledgements and subscriptions go out; the client scans this many slots at every flush.
        .set_outgoing_inflight_upper_limit(16)
        .set_ack_mode(AckMode::Manual)
        .set_connect_timeout(Duration::from_secs(10))
        .set_network_options(network);
    let session = subscriber_session::Empty::new(&options);
    options.set_session_store(session);
    AsyncClient::builder(options)
        .unbounded()
        .try_build()
        .map_err(|error| MqttError::Setting { name: config.name.clone(), message: error.to_string() })
}

fn delivery(publish: Publish, client: &AsyncClient, generation: u64) -> Delivery {
    let ticket = client.prepare_ack(&publish).map(|ack| Ticket { generation, ack: Ack::V5(ack) });
    let (content_type, properties) = publish.properties.map(|p| (p.content_type, p.user_properties)).unwrap_or_default();
    Delivery { topic: publish.topic, payload: publish.payload, content_type, properties, ticket }
}

/// A client that only subscribes has no session of its own to restore: the broker's is all there is.
mod subscriber_session {
    use std::future::Future;
    use std::pin::Pin;

    use rumqttc_v5::{MqttOptions, PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey};

    type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

    #[derive(Debug)]
    pub(super) struct Empty(PersistedSession);

    impl Empty {
        pub(super) fn new(options: &MqttOptions) -> Self {
            Self(PersistedSession {
                format_version: 1,
                client_id: options.client_id(),
                clean_start: options.clean_start(),
                session_expiry_interval: options.session_expiry_interval(),
                outgoing_inflight_upper_limit: options.get_outgoing_inflight_upper_limit(),
                ack_mode: PersistedAckMode::Manual,
                last_pkid: 0,
                last_puback: 0,
                replay: Vec::new(),
                incoming_qos2: Vec::new(),
            })
        }
    }

    impl SessionStore for Empty {
        fn load<'a>(&'a self, _: &'a SessionStoreKey) -> StoreFuture<'a, Option<PersistedSession>> {
            Box::pin(async { Ok(Some(self.0.clone())) })
        }
        fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a PersistedSession) -> StoreFuture<'a, ()> {
            Box::pin(async { Ok(()) })
        }
        fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> StoreFuture<'a, ()> {
            Box::pin(async { Ok(()) })
        }
    }
}

pub(super) async fn poll(
    config: MqttConfig,
    mut events: EventLoop,
    acker: Acker,
    deliveries: mpsc::Sender<Delivery>,
    stopping: Arc<AtomicBool>,
) {
    let Client::V5(client) = acker.client.clone() else { return };
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
