//! Objects of an API server that may be in this very process: [`Keeper`] writes and follows them like [`objects`], and where
//! the server is near nothing is made into text and read again in between. Who writes thousands of objects pays that for
//! each write several times over.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde_json::Value;
use stolos_k8s::{Status, meta};

use crate::objects::{self, Resource};
use crate::{Bare, Error};

/// The objects of an API server in this process.
pub trait Near: Send + Sync {
    /// Writes an object as `manager`; what it is then, and nothing for one that is deleted.
    fn write<'a>(
        &'a self,
        resource: &'a Resource,
        write: Write<'a>,
        manager: &'a str,
    ) -> BoxFuture<'a, Result<Option<Stored>, Status>>;

    /// Follows all objects of a kind, for ever; an error is followed by another try when the next is asked for.
    fn follow(&self, resource: &Resource) -> BoxStream<'static, Result<News, Status>>;
}

/// A write; each means what the function of its name in [`objects`] does.
#[derive(Clone, Copy, Debug)]
pub enum Write<'a> {
    /// Creates it, with its status.
    Create(&'a Value),
    /// Puts it in the place of the one of its name.
    Replace(&'a Value),
    /// Merges a patch.
    Merge {
        /// Its namespace, empty where it has none.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
        /// The patch.
        patch: &'a Value,
        /// Whether it is into the status.
        status: bool,
    },
    /// Deletes it, if it has that UID.
    Delete {
        /// Its namespace, empty where it has none.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
        /// The UID.
        uid: Option<&'a str>,
    },
}

/// An object as an API server has it.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Its namespace, empty where it has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The revision of its last change.
    pub revision: u64,
    /// It, as JSON, whose memory the server holds anyway.
    pub json: Bytes,
}

impl Stored {
    /// It, without `managedFields`.
    #[must_use]
    pub fn read(&self) -> Value {
        read(&self.json)
    }
}

/// An object as it is after a write.
#[derive(Debug)]
pub enum Written {
    /// Over HTTP it comes as a tree.
    Tree(Value),
    /// A server in this process has its text. It is not read yet: many do not look at it, and who follows the kind may have
    /// read it by now.
    Stored(Stored),
}

impl Written {
    /// It, without `managedFields`.
    #[must_use]
    pub fn read(self) -> Value {
        match self {
            Self::Tree(object) => object,
            Self::Stored(stored) => stored.read(),
        }
    }
}

/// An object as JSON that an API server or who follows one has written, without `managedFields`.
#[must_use]
pub fn read(json: &[u8]) -> Value {
    serde_json::from_slice::<Bare>(json).map(|bare| bare.value).unwrap_or_default()
}

/// What who follows a kind is told.
#[derive(Debug)]
pub enum News {
    /// All objects, and as of which revision: at first, and whenever too much has happened to be told one by one.
    All(Vec<Stored>, u64),
    /// What has changed since, in its order, each with whether it is gone.
    Changed(Vec<(Stored, bool)>),
}

/// Who keeps the objects: an API server, wherever it is.
#[derive(Clone)]
pub struct Keeper {
    client: kube::Client,
    near: Option<Arc<dyn Near>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("near", &self.near.is_some()).finish_non_exhaustive()
    }
}

impl From<kube::Client> for Keeper {
    fn from(client: kube::Client) -> Self {
        Self { client, near: None }
    }
}

impl Keeper {
    /// An API server in this process; `client` leads to the same one.
    #[must_use]
    pub fn near(client: kube::Client, near: Arc<dyn Near>) -> Self {
        Self { client, near: Some(near) }
    }

    /// A client for whatever else there is to ask.
    #[must_use]
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// Who is in this process, if it is.
    #[must_use]
    pub fn here(&self) -> Option<&Arc<dyn Near>> {
        self.near.as_ref()
    }

    /// As [`objects::create`]; a server in this process takes the status, too, which every other one leaves out.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn create(&self, resource: &Resource, object: &Value, manager: &str) -> Result<Written, Error> {
        let Some(near) = &self.near else {
            return objects::create(&self.client, resource, object, manager).await.map(Written::Tree);
        };
        let what = || objects::attempt("create", resource, meta::namespace(object), meta::name(object));
        told(near.write(resource, Write::Create(object), manager).await, what)
    }

    /// As [`objects::replace`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn replace(&self, resource: &Resource, object: &Value, manager: &str) -> Result<Written, Error> {
        let Some(near) = &self.near else {
            return objects::replace(&self.client, resource, object, manager).await.map(Written::Tree);
        };
        let what = || objects::attempt("replace", resource, meta::namespace(object), meta::name(object));
        told(near.write(resource, Write::Replace(object), manager).await, what)
    }

    /// As [`objects::merge`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn merge(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        patch: &Value,
        status: bool,
        manager: &str,
    ) -> Result<Written, Error> {
        let Some(near) = &self.near else {
            let place = (Some(namespace).filter(|namespace| !namespace.is_empty()), name);
            return objects::merge(&self.client, resource, place, patch, status, manager).await.map(Written::Tree);
        };
        let verb = if status { "change the status of" } else { "change" };
        let what = || objects::attempt(verb, resource, namespace, name);
        told(near.write(resource, Write::Merge { namespace, name, patch, status }, manager).await, what)
    }

    /// As [`objects::delete`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn delete(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        uid: Option<&str>,
    ) -> Result<bool, Error> {
        let Some(near) = &self.near else {
            let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
            return objects::delete(&self.client, resource, namespace, name, uid).await;
        };
        match near.write(resource, Write::Delete { namespace, name, uid }, "").await {
            Ok(_) => Ok(true),
            Err(status) if status.code == 404 => Ok(false),
            Err(status) => Err(refused(&status, objects::attempt("delete", resource, namespace, name))),
        }
    }
}

fn told(written: Result<Option<Stored>, Status>, what: impl FnOnce() -> String) -> Result<Written, Error> {
    match written {
        Ok(stored) => Ok(Written::Stored(stored.unwrap_or_default())),
        Err(status) => Err(refused(&status, what())),
    }
}

/// What an API server over HTTP would have said.
fn refused(status: &Status, what: String) -> Error {
    let said = serde_json::from_value::<kube::core::Status>(status.to_value());
    let source = said.map_or_else(kube::Error::SerdeError, |status| kube::Error::Api(Box::new(status)));
    Error::Request { what, source: Box::new(source) }
}
