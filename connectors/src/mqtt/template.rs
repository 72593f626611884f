//! Topic templates: `sites/{site}/meters/{subject}/{meter}` binds segments of a topic to fields.

/// One level of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Field(String),
    Any,
    Rest,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate(Vec<Segment>);

/// Why a template cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Braces do not enclose exactly one segment.
    #[error("template segment `{0}` is neither text, `{{field}}`, `+` nor a final `#`")]
    Segment(String),
    /// A field is bound twice.
    #[error("template binds `{0}` twice")]
    Twice(String),
}

impl TopicTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut segments = Vec::new();
        let parts: Vec<&str> = text.split('/').collect();
        for (index, part) in parts.iter().enumerate() {
            let wrong = || TemplateError::Segment((*part).to_owned());
            let segment = match *part {
                "+" => Segment::Any,
                "#" if index + 1 == parts.len() => Segment::Rest,
                _ => match part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                    Some(name) if !name.is_empty() && !name.contains(['{', '}']) => Segment::Field(name.to_owned()),
                    None if !part.contains(['{', '}', '+', '#']) => Segment::Literal((*part).to_owned()),
                    _ => return Err(wrong()),
                },
            };
            if let Segment::Field(name) = &segment
                && segments.contains(&segment)
            {
                return Err(TemplateError::Twice(name.clone()));
            }
            segments.push(segment);
        }
        Ok(Self(segments))
    }

    /// The fields that `topic` binds, or `None` where it does not fit.
    #[must_use]
    pub fn bind<'a>(&'a self, topic: &'a str) -> Option<Vec<(&'a str, &'a str)>> {
        let mut bound = Vec::new();
        let mut levels = topic.split('/');
        for segment in &self.0 {
            if *segment == Segment::Rest {
                return Some(bound);
            }
            let level = levels.next()?;
            match segment {
                Segment::Literal(text) if text == level => {}
                Segment::Field(name) if !level.is_empty() => bound.push((name.as_str(), level)),
                Segment::Any => {}
                _ => return None,
            }
        }
        levels.next().is_none().then_some(bound)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn binds_segments() {
        let template = TopicTemplate::parse("sites/{site}/meters/{subject}/{meter}").unwrap();
        assert_eq!(template.bind("sites/a/meters/m1/kwh"), Some(vec![("site", "a"), ("subject", "m1"), ("meter", "kwh")]));
        for topic in ["sites/a/meters/m1", "sites/a/meters/m1/kwh/x", "sites//meters/m1/kwh", "x/a/meters/m1/kwh", ""] {
            assert_eq!(template.bind(topic), None, "{topic}");
        }
        assert_eq!(TopicTemplate::parse("+/{subject}/#").unwrap().bind("a/b/c/d"), Some(vec![("subject", "b")]));
        assert!(TopicTemplate::parse("a{b}").is_err());
        assert!(TopicTemplate::parse("{a}/{a}").is_err());
        assert!(TopicTemplate::parse("#/a").is_err());
    }
}
