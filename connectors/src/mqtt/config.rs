//! `[[mqtt]]` in `ratemill.toml`.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use super::template::{TemplateError, TopicTemplate};
use crate::mapping::{MappingConfig, MappingError};

/// The protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum MqttVersion {
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V4,
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
}

/// What a message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// A CloudEvent: structured JSON, or with MQTT 5 also binary (attributes as user properties).
    #[default]
    CloudEvents,
    /// A JSON object, read by `mapping` and `identity`.
    Json,
}

/// One MQTT connector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqttConfig {
    /// Name in messages, metrics and the rejected table.
    pub name: String,
    /// `mqtt://host:1883` or, with TLS, `mqtts://host:8883`.
    pub url: String,
    /// `"5"` or `"3.1.1"`.
    #[serde(default)]
    pub version: MqttVersion,
    /// The broker keeps the session under this name: it must be the same after a restart, and no one else's.
    pub client_id: String,
    /// Topic filters; `$share/group/filter` shares the messages among engines.
    pub topics: Vec<String>,
    /// `sites/{site}/meters/{subject}/{meter}` binds segments of the topic to fields.
    pub template: Option<String>,
    /// 1, or 0 for messages that may be lost.
    #[serde(default = "one")]
    pub qos: u8,
    /// What a message holds.
    #[serde(default)]
    pub payload: Payload,
    /// Fields of plain JSON.
    #[serde(default)]
    pub mapping: MappingConfig,
    /// Fields that make the id of a message that has none.
    #[serde(default)]
    pub identity: Vec<String>,
    /// User name.
    pub username: Option<String>,
    /// Password; write `${ENV}` rather than the secret.
    pub password: Option<String>,
    /// PEM file of the certificate authority; the system's authorities by default.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key.
    pub key_file: Option<PathBuf>,
    /// Messages that may be under way unacknowledged.
    #[serde(default = "thousand")]
    pub receive_maximum: u16,
    /// Seconds that the broker keeps the session while nobody is connected (MQTT 5).
    #[serde(default = "week")]
    pub session_expiry_seconds: u32,
    /// Seconds between signs of life.
    #[serde(default = "thirty")]
    pub keep_alive_seconds: u16,
}

fn one() -> u8 {
    1
}
fn thirty() -> u16 {
    30
}
fn thousand() -> u16 {
    1000
}
fn week() -> u32 {
    7 * 86_400
}

/// An MQTT connector that cannot run.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    /// The URL is not one of a broker.
    #[error("mqtt `{name}`: url `{url}` is not mqtt://host[:port] or mqtts://host[:port]")]
    Url {
        /// Connector.
        name: String,
        /// What was given.
        url: String,
    },
    /// A setting is out of its range.
    #[error("mqtt `{name}`: {message}")]
    Setting {
        /// Connector.
        name: String,
        /// What is wrong and what would be valid.
        message: String,
    },
    /// The topic template cannot be read.
    #[error("mqtt `{name}`: {source}")]
    Template {
        /// Connector.
        name: String,
        /// Why.
        source: TemplateError,
    },
    /// The mapping cannot work.
    #[error("mqtt `{name}`: {source}")]
    Mapping {
        /// Connector.
        name: String,
        /// Why.
        source: MappingError,
    },
    /// Certificates or keys cannot be read.
    #[error("mqtt `{name}`: {message}")]
    Tls {
        /// Connector.
        name: String,
        /// What and where.
        message: String,
    },
}

impl MqttConfig {
    pub(super) fn check(&self) -> Result<(), MqttError> {
        let wrong = |message: &str| Err(MqttError::Setting { name: self.name.clone(), message: message.to_owned() });
        self.broker()?;
        if self.client_id.is_empty() {
            return wrong("client_id is empty; the broker needs it to keep the session");
        }
        if self.topics.is_empty() || self.topics.iter().any(String::is_empty) {
            return wrong("topics is empty; name at least one filter, like \"meters/#\"");
        }
        if let Some(filter) = self.topics.iter().find(|filter| !is_filter(filter)) {
            return wrong(&format!("`{filter}` is no topic filter: + stands for one whole level, # for all that follow, at the end"));
        }
        if self.password.is_some() && self.username.is_none() {
            return wrong("a password goes with a username");
        }
        if self.qos > 1 {
            return wrong("qos must be 1 (or 0 for messages that may be lost); QoS 2 adds nothing to exact deduplication");
        }
        if self.receive_maximum == 0 {
            return wrong("receive_maximum must be at least 1");
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return wrong("cert_file and key_file go together");
        }
        if self.payload == Payload::CloudEvents && !self.identity.is_empty() {
            return wrong("identity is for payload = \"json\"; CloudEvents carry their own id");
        }
        if let Some(template) = &self.template {
            TopicTemplate::parse(template).map_err(|source| MqttError::Template { name: self.name.clone(), source })?;
        }
        Ok(())
    }

    /// Host, port and whether to use TLS.
    pub(super) fn broker(&self) -> Result<(String, u16, bool), MqttError> {
        // What stands before an @ may be a password.
        let shown = self.url.rsplit('@').next().unwrap_or_default().to_owned();
        let wrong = || MqttError::Url { name: self.name.clone(), url: shown.clone() };
        let url = Url::parse(&self.url).map_err(|_| wrong())?;
        let (tls, port) = match url.scheme() {
            "mqtt" | "tcp" => (false, 1883),
            "mqtts" | "ssl" => (true, 8883),
            _ => return Err(wrong()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            let message = "the url holds a user or password; write them as username and password = \"${ENV}\"".to_owned();
            return Err(MqttError::Setting { name: self.name.clone(), message });
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        Ok((host.to_owned(), url.port().unwrap_or(port), tls))
    }
}

fn is_filter(filter: &str) -> bool {
    let levels: Vec<&str> = filter.split('/').collect();
    levels.iter().enumerate().all(|(index, level)| match *level {
        "+" => true,
        "#" => index + 1 == levels.len(),
        other => !other.contains(['+', '#']),
    })
}
