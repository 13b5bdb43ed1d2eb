//! The shortest proof: one answer from one cluster to another, between the samples.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use stolos_cluster::Cluster;

use crate::Error;
use crate::exec::{self, Failed};
use crate::probe::{SERVER, answers, script};

/// Namespace of the samples, and what asks there.
const SAMPLES: &str = "sample";
const ASKING: &str = "sleep";
/// Requests of one command: with as many, one of three clusters has almost surely answered.
const BATCH: usize = 6;

/// Waits until HelloWorld of `to` has answered the sleep pod of `from`, and gives the name of the pod that answered.
///
/// # Errors
///
/// When a cluster cannot be asked, or there was no such answer for so long.
pub async fn reaches(from: &Cluster, to: &Cluster, patience: Duration) -> Result<String, Error> {
    let there = running(to, SERVER).await?;
    let client = running(from, ASKING).await?;
    let client = client.first().ok_or_else(|| nobody(from, "no sleep pod runs there"))?;
    let began = Instant::now();
    loop {
        let ask = script(SAMPLES, "reach", BATCH);
        let command = ["sh", "-c", &ask];
        let heard = exec::output(&from.client, SAMPLES, client, ASKING, &command, patience).await;
        let heard = heard.map_err(|failed| match failed {
            Failed::Start(source) => Error::Exec { cluster: from.name.clone(), source },
            other => nobody(from, &other.to_string()),
        })?;
        if let Some(pod) = answers(&heard).into_iter().filter_map(|a| a.instance).find(|pod| there.contains(pod)) {
            return Ok(pod);
        }
        if began.elapsed() > patience {
            return Err(nobody(from, &format!("no answer from {} after {} s", to.name, patience.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The pods of a sample.
async fn running(cluster: &Cluster, app: &str) -> Result<Vec<String>, Error> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), SAMPLES);
    let found = pods.list(&ListParams::default().labels(&format!("app={app}"))).await.map_err(|source| {
        let what = format!("list the pods of {app}");
        let source = stolos_cluster::Error::Request { what, source: Box::new(source) };
        Error::Cluster { cluster: cluster.name.clone(), source }
    })?;
    Ok(found.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
}

fn nobody(from: &Cluster, why: &str) -> Error {
    Error::Client { cluster: from.name.clone(), why: why.to_owned() }
}
