//! Messages on their way from the poll task to the log, and acknowledgements on their way back.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use ratemill_schemas::usage::{Positions, RawRecords};
use ratemill_schemas::{Reason, UsageBatch};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::config::{MqttConfig, MqttError, Payload};
use super::template::TopicTemplate;
use crate::decode::ndjson::{self, Shape};
use crate::decode::{Collector, DecodeContext, Fields, Place, Value, cloudevents};
use crate::intake::{InputName, Intake, IntakeError};
use crate::mapping::Mapping;

/// Messages that are decoded and submitted together.
const BATCH_MESSAGES_MAX: usize = 2000;
/// Batches that may wait for the log at once.
const BATCHES_UNDER_WAY: usize = 4;

/// One message as it came.
pub(super) struct Delivery {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    /// MQTT 5: the content type.
    pub(super) content_type: Option<String>,
    /// MQTT 5: user properties.
    pub(super) properties: Vec<(String, String)>,
    /// What acknowledges it; none at QoS 0.
    pub(super) ticket: Option<Ticket>,
}

/// An acknowledgement that is valid on one connection.
pub(super) struct Ticket {
    pub(super) generation: u64,
    pub(super) ack: Ack,
}

pub(super) enum Ack {
    V4(rumqttc_v4::ManualAck),
    V5(rumqttc_v5::ManualAck),
}

#[derive(Clone)]
pub(super) enum Client {
    V4(rumqttc_v4::AsyncClient),
    V5(rumqttc_v5::AsyncClient),
}

/// Acknowledges messages of the present connection only.
#[derive(Clone)]
pub(super) struct Acker {
    pub(super) client: Client,
    generation: Arc<Mutex<u64>>,
}

impl Acker {
    pub(super) fn new(client: Client) -> Self {
        Self { client, generation: Arc::default() }
    }

    pub(super) fn generation(&self) -> u64 {
        *self.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is gone: tickets of it are void.
    pub(super) fn next_generation(&self) {
        *self.generation.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// Acknowledges, or does nothing when the ticket is of an older connection: the broker will deliver again.
    fn acknowledge(&self, ticket: Ticket) {
        // Held over the send, so that no acknowledgement slips behind a change of connection.
        let generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        if *generation != ticket.generation {
            return;
        }
        let sent = match (&self.client, ticket.ack) {
            (Client::V4(client), Ack::V4(ack)) => client.try_manual_ack(ack).map_err(|error| error.to_string()),
            (Client::V5(client), Ack::V5(ack)) => client.try_manual_ack(ack).map_err(|error| error.to_string()),
            _ => Ok(()),
        };
        if let Err(error) = sent {
            tracing::debug!(error, "acknowledgement not sent; the broker will deliver again");
        }
    }

    pub(super) fn disconnect(&self) {
        let sent = match &self.client {
            Client::V4(client) => client.try_disconnect().map_err(|error| error.to_string()),
            Client::V5(client) => client.try_disconnect().map_err(|error| error.to_string()),
        };
        if let Err(error) = sent {
            tracing::debug!(error, "disconnect not sent");
        }
    }
}

pub(super) struct Deliveries {
    pub(super) deliveries: mpsc::Receiver<Delivery>,
}

/// Decodes messages, submits them and acknowledges in the order of arrival.
#[derive(Debug)]
pub(super) struct Receiver {
    input: InputName,
    context: DecodeContext,
    intake: Intake,
    mapping: Mapping,
    payload: Payload,
    template: Option<TopicTemplate>,
    qos: u8,
}

impl Receiver {
    pub(super) fn new(config: &MqttConfig, context: DecodeContext, intake: Intake) -> Result<Self, MqttError> {
        let name = config.name.clone();
        let template = config
            .template
            .as_deref()
            .map(TopicTemplate::parse)
            .transpose()
            .map_err(|source| MqttError::Template { name: name.clone(), source })?;
        let mapping = match config.payload {
            Payload::CloudEvents => Mapping::cloud_events(&context.schema, config.mapping.quantity.clone()),
            Payload::Json => Mapping::plain(&name, &config.mapping, &config.identity, &context.schema)
                .map_err(|source| MqttError::Mapping { name: name.clone(), source })?,
        };
        Ok(Self { input: name.into(), context, intake, mapping, payload: config.payload, template, qos: config.qos })
    }

    pub(super) async fn run(&self, mut queue: Deliveries, acker: &Acker, stop: &CancellationToken) {
        let mut under_way = FuturesOrdered::new();
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                Some((tickets, durable)) = under_way.next(), if !under_way.is_empty() => {
                    if durable { for ticket in tickets { acker.acknowledge(ticket); } } else { return }
                    continue;
                }
                () = stop.cancelled() => break,
                count = queue.deliveries.recv_many(&mut batch, BATCH_MESSAGES_MAX), if under_way.len() < BATCHES_UNDER_WAY => {
                    if count == 0 { break }
                }
            }
            match self.decode(&batch) {
                Ok(usage) => {
                    let tickets: Vec<Ticket> = batch.into_iter().filter_map(|delivery| delivery.ticket).collect();
                    under_way.push_back(async move { (tickets, self.submit(usage).await) });
                }
                Err(error) => {
                    tracing::error!(connector = %self.input, %error, "messages could not be put into a batch; they stay unacknowledged")
                }
            }
        }
        while let Some((tickets, durable)) = under_way.next().await {
            if durable {
                tickets.into_iter().for_each(|ticket| acker.acknowledge(ticket));
            }
        }
    }

    /// Whether the batch is durable; waits as long as the log is full, which withholds the acknowledgements.
    async fn submit(&self, usage: UsageBatch) -> bool {
        let usage = Arc::new(usage);
        loop {
            match self.intake.submit(&self.input, usage.copy(), Vec::new(), false).await {
                Ok(_) => return true,
                Err(IntakeError::Full) => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(IntakeError::Stopped) => return false,
            }
        }
    }

    fn decode(&self, batch: &[Delivery]) -> Result<UsageBatch, arrow::error::ArrowError> {
        let positions = Positions::Topic(Vec::with_capacity(batch.len()));
        let mut collector = Collector::new(&self.context, &self.mapping, positions, RawRecords::Messages(Vec::new()), batch.len());
        for delivery in batch {
            let topic: Arc<str> = String::from_utf8_lossy(&delivery.topic).into();
            let binary = self.binary_attributes(delivery);
            let fields = self.fields(delivery, &topic, binary.as_deref());
            match &binary {
                Some(attributes) => {
                    let raw = cloudevents::raw_binary(attributes, &String::from_utf8_lossy(&delivery.payload));
                    collector.record(&fields, Place::Topic(&topic), &raw, None);
                }
                None => {
                    collector.record(&fields, Place::Topic(&topic), &delivery.payload, None);
                }
            }
        }
        collector.finish()
    }

    fn fields<'d>(
        &'d self,
        delivery: &'d Delivery,
        topic: &'d str,
        binary: Option<&'d [(String, String)]>,
    ) -> Result<Fields<'d>, (Reason, String)> {
        if delivery.ticket.is_none() && self.qos > 0 {
            return Err((
                Reason::QosTooLow,
                "sent at QoS 0, which may be lost; publish at QoS 1, or set qos = 0 for this connector".to_owned(),
            ));
        }
        let bound = match &self.template {
            None => Vec::new(),
            Some(template) => {
                template.bind(topic).ok_or_else(|| (Reason::TopicMismatch, format!("topic `{topic}` does not fit the template")))?
            }
        };
        let mut fields = match (self.payload, binary) {
            (Payload::CloudEvents, Some(attributes)) => {
                let text = std::str::from_utf8(&delivery.payload).map_err(|error| (Reason::NotUtf8, format!("not UTF-8: {error}")))?;
                cloudevents::binary_fields(&self.context, attributes, text)?
            }
            (Payload::CloudEvents, None) => ndjson::parse(&self.context, Shape::CloudEvent, &delivery.payload)?,
            (Payload::Json, _) => ndjson::parse(&self.context, Shape::Plain, &delivery.payload)?,
        };
        bind(&mut fields, &bound, &self.mapping)?;
        Ok(fields)
    }

    /// The attributes of a binary CloudEvent (MQTT 5 binding, section 3.1): user properties, unprefixed.
    fn binary_attributes(&self, delivery: &Delivery) -> Option<Vec<(String, String)>> {
        let structured =
            delivery.content_type.as_deref().is_some_and(|content| content.to_ascii_lowercase().starts_with("application/cloudevents"));
        if self.payload != Payload::CloudEvents || structured || !delivery.properties.iter().any(|(name, _)| name == "specversion") {
            return None;
        }
        let mut attributes = delivery.properties.clone();
        if let Some(content_type) = &delivery.content_type
            && !attributes.iter().any(|(name, _)| name == "datacontenttype")
        {
            attributes.push(("datacontenttype".to_owned(), content_type.clone()));
        }
        Some(attributes)
    }
}

/// Adds the fields that the topic binds, where the mapping looks for them; where the message says something else,
/// neither is believed.
///
/// # Errors
/// [`Reason::TopicMismatch`].
pub fn bind<'f>(fields: &mut Fields<'f>, bound: &[(&'f str, &'f str)], mapping: &'f Mapping) -> Result<(), (Reason, String)> {
    for (name, value) in bound {
        let names = mapping.fields_of(name);
        let mut given = false;
        for field in &names {
            match fields.get(field) {
                None | Some(Value::Null) => {}
                Some(said) if said.text() == Some(value) => given = true,
                Some(said) => {
                    let message = format!("the topic says {name} `{value}`, the message `{}`", said.text().unwrap_or("null"));
                    return Err((Reason::TopicMismatch, message));
                }
            }
        }
        if !given {
            fields.set(names.first().unwrap_or(name), Value::Text(Cow::Borrowed(value)));
        }
    }
    Ok(())
}
