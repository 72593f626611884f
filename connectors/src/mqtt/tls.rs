//! TLS for a broker: the given authority or the system's, and a client certificate where there is one.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rumqttc_v5::TlsConfiguration;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::config::{MqttConfig, MqttError};

pub(super) fn configuration(config: &MqttConfig) -> Result<TlsConfiguration, MqttError> {
    let wrong = |message: String| MqttError::Tls { name: config.name.clone(), message };
    let read = |path: &Path| fs::read(path).map_err(|error| wrong(format!("cannot read {}: {error}", path.display())));
    let mut roots = RootCertStore::empty();
    match &config.ca_file {
        Some(path) => {
            for certificate in CertificateDer::pem_slice_iter(&read(path)?) {
                let certificate = certificate.map_err(|error| wrong(format!("{}: {error}", path.display())))?;
                roots.add(certificate).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(wrong("no certificate authority was found; name one with ca_file".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots);
    let client = match (&config.cert_file, &config.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| wrong(format!("{}: {error}", certificate.display())))?;
            let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| wrong(format!("{}: {error}", key.display())))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong(error.to_string()))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(TlsConfiguration::from(client))
}
