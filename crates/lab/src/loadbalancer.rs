//! Load-balancer addresses: listeners of the lab that pick a ready pod per connection and splice.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use stolos_serve::{Listener, Stop, Stream};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::address::socket_port;
use crate::directory::Directories;
use crate::network::World;

/// One port of one load-balancer address, and the Service behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Front {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    /// The Service's port that it leads to: another one where nodes do.
    pub(crate) to: u16,
    pub(crate) namespace: String,
    pub(crate) service: String,
}

/// All load-balancer listeners of a cluster.
pub(crate) struct Balancer {
    world: Arc<World>,
    directories: Directories,
    fronts: Mutex<BTreeMap<Front, Stop>>,
    tasks: TaskTracker,
    stop: Stop,
}

impl Balancer {
    pub(crate) fn new(world: &Arc<World>, directories: &Directories, tasks: &TaskTracker, stop: &Stop) -> Self {
        Self {
            world: Arc::clone(world),
            directories: directories.clone(),
            fronts: Mutex::default(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        }
    }

    /// From now on these are the names of this cluster's load balancers.
    pub(crate) fn name(&self, cluster: &str, names: BTreeMap<String, Ipv4Addr>) {
        self.world.set_names(cluster, names);
    }

    /// From now on exactly `wanted` are listened for.
    pub(crate) async fn set(&self, wanted: Vec<Front>) {
        let mut fronts = self.fronts.lock().await;
        fronts.retain(|front, stop| {
            let keep = wanted.contains(front);
            if !keep {
                stop.ask();
            }
            keep
        });
        for front in wanted {
            if fronts.contains_key(&front) {
                continue;
            }
            let stop = self.stop.child();
            let at = SocketAddrV4::new(front.address, socket_port(front.port));
            match self.world.listen(at).await {
                Ok(listener) => {
                    let serving = serve(
                        listener,
                        front.clone(),
                        Arc::clone(&self.world),
                        self.directories.clone(),
                        self.tasks.clone(),
                        stop.clone(),
                    );
                    self.tasks.spawn(serving);
                    fronts.insert(front, stop);
                }
                Err(error) => {
                    tracing::warn!(%at, service = %front.service, %error, "cannot listen for a load balancer")
                }
            }
        }
    }
}

async fn serve(
    listener: Listener,
    front: Front,
    world: Arc<World>,
    directories: Directories,
    tasks: TaskTracker,
    stop: Stop,
) {
    let front = Arc::new(front);
    loop {
        let (client, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => return tracing::warn!(?front, %error, "load balancer ended"),
            },
            () = stop.asked() => return,
        };
        let IpAddr::V4(peer) = peer.ip() else { continue };
        let (front, world, directories, stop) =
            (Arc::clone(&front), Arc::clone(&world), directories.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = carry(client, peer, &front, &world, &directories) => {}
                () = stop.asked() => {}
            }
        });
    }
}

/// One connection. A pod that does not answer is as good as none: another is tried, and then the client is reset.
async fn carry(mut client: Stream, peer: Ipv4Addr, front: &Front, world: &Arc<World>, directories: &Directories) {
    const TRIES: usize = 3;
    const CONNECT: Duration = Duration::from_secs(2);
    for _ in 0..TRIES {
        let pick = |count| rand::random_range(0..count);
        let Some(pod) = directories.now().endpoint(&front.namespace, &front.service, front.to, pick) else { break };
        match tokio::time::timeout(CONNECT, world.dial_for(peer, pod)).await {
            Ok(Ok((mut upstream, vouched))) => {
                if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
                    tracing::debug!(%peer, %pod, %error, "connection through a load balancer ended");
                    client.reset_on_drop();
                }
                drop(vouched);
                return;
            }
            Ok(Err(error)) => tracing::debug!(%pod, %error, "cannot reach a pod behind a load balancer"),
            Err(_) => tracing::debug!(%pod, "a pod behind a load balancer does not answer"),
        }
    }
    client.reset_on_drop();
}
