//! Names of images, in parts.

use std::fmt;

use serde_json::Value;

use super::{Refusal, containers};
use crate::model::{ImageComponent, ImageOverrider, OverrideOperator};

/// `[registry/]repository[:tag][@digest]`. As in Karmada, what stands before the first `/` is the registry, also where a
/// container runtime would take it for a part of the path (`library/nginx`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Before the first `/`; may be empty.
    pub registry: String,
    /// The name.
    pub repository: String,
    /// The tag; may be empty.
    pub tag: String,
    /// The digest; may be empty.
    pub digest: String,
}

impl Image {
    /// Takes a name apart.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (rest, digest) = text.split_once('@').unwrap_or((text, ""));
        // A colon before a slash is a port's.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (rest, ""),
        };
        let (registry, repository) = name.split_once('/').unwrap_or(("", name));
        Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: digest.to_owned(),
        }
    }

    /// Changes one part. What is neither tag nor digest leaves both as they are, as in Karmada.
    #[must_use]
    pub fn changed(mut self, component: ImageComponent, operator: OverrideOperator, value: &str) -> Self {
        let change = |part: &str| match operator {
            OverrideOperator::Add => format!("{part}{value}"),
            OverrideOperator::Replace => value.to_owned(),
            OverrideOperator::Remove => String::new(),
        };
        match component {
            ImageComponent::Registry => self.registry = change(&self.registry),
            ImageComponent::Repository => self.repository = change(&self.repository),
            ImageComponent::Tag => {
                let part = if self.tag.is_empty() { &self.digest } else { &self.tag };
                let made = change(part);
                if made.is_empty() || is_tag(&made) {
                    (self.tag, self.digest) = (made, String::new());
                } else if is_digest(&made) {
                    (self.tag, self.digest) = (String::new(), made);
                }
            }
        }
        self
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, before, after) in
            [(&self.registry, "", "/"), (&self.repository, "", ""), (&self.tag, ":", ""), (&self.digest, "@", "")]
        {
            if !part.is_empty() {
                write!(f, "{before}{part}{after}")?;
            }
        }
        Ok(())
    }
}

/// Whether it is something that may stand behind an image's name.
pub(crate) fn is_version(text: &str) -> bool {
    is_tag(text) || is_digest(text)
}

fn is_tag(text: &str) -> bool {
    let word = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|letter| word(letter) || matches!(letter, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.bytes().next().is_some_and(|letter| letter.is_ascii_alphabetic())
            && hex.len() >= 32
            && hex.bytes().all(|letter| letter.is_ascii_hexdigit())
    })
}

/// Changes the image at the overrider's path, or those of all containers.
pub(super) fn change(manifest: &mut Value, overrider: &ImageOverrider) -> Result<(), Refusal> {
    let changed = |image: &str| {
        Image::parse(image).changed(overrider.component, overrider.operator, &overrider.value).to_string()
    };
    let Some(predicate) = &overrider.predicate else {
        for container in containers(manifest).into_iter().flatten() {
            if let Some(image) = container.get_mut("image") {
                let text = image.as_str().map(changed);
                *image = text.map_or(Value::Null, Value::from);
            }
        }
        return Ok(());
    };
    let path = &predicate.path;
    let image = manifest.pointer_mut(path).ok_or_else(|| (path.clone(), "there is no such field".to_owned()))?;
    let text = image.as_str().ok_or_else(|| (path.clone(), "it is not a text".to_owned()))?;
    *image = changed(text).into();
    Ok(())
}
