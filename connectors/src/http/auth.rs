//! API keys: bearer tokens of which only the SHA-256 is kept.

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Problem;

/// One key that may send usage, and read charges or operate the engine where it is said.
#[derive(Debug, Clone)]
pub struct ApiKey {
    name: String,
    sha256: [u8; 32],
    reads: bool,
    operates: bool,
}

/// A key hash that is not one.
#[derive(Debug, thiserror::Error)]
#[error("key `{name}`: sha256 must be 64 hexadecimal digits; make one with: printf %s \"$KEY\" | sha256sum")]
pub struct ApiKeyError {
    name: String,
}

impl ApiKey {
    /// A key called `name` whose token has this SHA-256 in hexadecimal.
    ///
    /// # Errors
    /// [`ApiKeyError`].
    pub fn new(name: &str, sha256: &str) -> Result<Self, ApiKeyError> {
        let mut digest = [0; 32];
        hex::decode_to_slice(sha256, &mut digest).map_err(|_| ApiKeyError { name: name.to_owned() })?;
        Ok(Self { name: name.to_owned(), sha256: digest, reads: false, operates: false })
    }

    /// Whether it may read charges.
    #[must_use]
    pub fn reading(mut self, reads: bool) -> Self {
        self.reads = reads;
        self
    }

    /// Whether it may operate the engine: post corrections, reload rules.
    #[must_use]
    pub fn operating(mut self, operates: bool) -> Self {
        self.operates = operates;
        self
    }
}

/// The keys of a listener; none means that nobody is asked for one.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys(Vec<ApiKey>);

impl ApiKeys {
    /// A listener's keys.
    #[must_use]
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self(keys)
    }

    /// The name of the caller's key; `None` where no keys are asked for.
    ///
    /// # Errors
    /// A 401 problem.
    pub fn check(&self, headers: &HeaderMap) -> Result<Option<&str>, Problem> {
        Ok(self.caller(headers)?.map(|key| key.name.as_str()))
    }

    /// That the caller may read charges.
    ///
    /// # Errors
    /// A 401 problem, or 403 where the key only sends usage.
    pub fn check_reading(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match self.caller(headers)? {
            Some(key) if !key.reads => {
                let detail = format!("the key `{}` sends usage; a key with `charges = true` reads charges", key.name);
                Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", detail))
            }
            _ => Ok(()),
        }
    }

    /// That the caller may operate the engine.
    ///
    /// # Errors
    /// A 401 problem, or 403 where the key has not that right.
    pub fn check_operating(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match self.caller(headers)? {
            Some(key) if !key.operates => {
                let detail = format!("the key `{}` does not operate the engine; a key with `operate = true` does", key.name);
                Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", detail))
            }
            _ => Ok(()),
        }
    }

    fn caller(&self, headers: &HeaderMap) -> Result<Option<&ApiKey>, Problem> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let refused = |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, "Unauthorized", detail);
        let token = headers.get(header::AUTHORIZATION).ok_or_else(|| refused("send an API key: `Authorization: Bearer KEY`"))?.as_bytes();
        let (scheme, token) = token.split_at_checked(7).ok_or_else(|| refused("the Authorization header is not `Bearer KEY`"))?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(refused("the Authorization header is not `Bearer KEY`"));
        }
        let digest = Sha256::digest(token.trim_ascii());
        // Every key is compared, so that the time tells nothing.
        let found = self.0.iter().fold(None, |found, key| if bool::from(key.sha256.ct_eq(&digest[..])) { Some(key) } else { found });
        found.map(Some).ok_or_else(|| refused("the API key is not known"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rights_are_apart() {
        let key = |name: &str| ApiKey::new(name, &hex::encode(Sha256::digest(name.as_bytes()))).unwrap();
        let keys = ApiKeys::new(vec![key("meter"), key("reader").reading(true), key("operator").operating(true)]);
        for (name, reads, operates) in [("meter", false, false), ("reader", true, false), ("operator", false, true)] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {name}").parse().unwrap());
            assert_eq!(keys.check_reading(&headers).is_ok(), reads, "{name}");
            assert_eq!(keys.check_operating(&headers).is_ok(), operates, "{name}");
        }
        assert!(keys.check_operating(&HeaderMap::new()).is_err());
        assert!(ApiKeys::default().check_operating(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn only_the_right_token_passes() {
        let digest = hex::encode(Sha256::digest(b"secret"));
        let keys = ApiKeys::new(vec![ApiKey::new("meters", &digest).unwrap()]);
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            keys.check(&headers).map(|name| name.map(str::to_owned)).ok()
        };
        assert_eq!(with("Bearer secret"), Some(Some("meters".to_owned())));
        assert_eq!(with("bearer secret"), Some(Some("meters".to_owned())));
        for wrong in ["Bearer secre", "Bearer ", "Basic secret", "secret", "Bearer secrets"] {
            assert_eq!(with(wrong), None, "{wrong}");
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
        assert!(ApiKey::new("x", "abc").is_err());
    }
}
