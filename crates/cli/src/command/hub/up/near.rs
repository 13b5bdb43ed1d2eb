//! The hub's own API server, as the hub has it: in its own process.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use stolos_apiserver::near::{self, Kind};
use stolos_cluster::near::{Near, News, Stored, Write};
use stolos_cluster::objects::Resource;
use stolos_k8s::Status;

/// An API server of this process.
pub(super) struct Here(pub(super) near::Near);

impl Near for Here {
    fn write<'a>(
        &'a self,
        resource: &'a Resource,
        write: Write<'a>,
        manager: &'a str,
    ) -> BoxFuture<'a, Result<Option<Stored>, Status>> {
        let (objects, kind) = (&self.0, kind(resource));
        async move {
            let written = match write {
                Write::Create(object) => objects.create(kind, object.clone(), manager).await,
                Write::Replace(object) => objects.replace(kind, object, manager).await,
                Write::Merge { namespace, name, patch, status } => {
                    let sub = if status { "status" } else { "" };
                    objects.merge(kind, (namespace, name, sub), patch, manager).await
                }
                Write::Delete { namespace, name, uid } => {
                    return objects.delete(kind, (namespace, name), uid).await.map(|()| None);
                }
            };
            written.map(|object| Some(stored(object)))
        }
        .boxed()
    }

    fn follow(&self, resource: &Resource) -> BoxStream<'static, Result<News, Status>> {
        let follow = self.0.follow(kind(resource));
        let news = futures::stream::unfold(follow, async |mut follow| {
            let news = follow.next().await.map(|news| match news {
                near::News::All(objects, revision) => News::All(objects.into_iter().map(stored).collect(), revision),
                near::News::Changed(changes) => {
                    News::Changed(changes.into_iter().map(|seen| (stored(seen.object), seen.gone)).collect())
                }
            });
            Some((news, follow))
        });
        news.boxed()
    }
}

fn kind(resource: &Resource) -> Kind<'_> {
    Kind { api_version: &resource.api_version, plural: &resource.plural }
}

fn stored(object: near::Stored) -> Stored {
    let near::Stored { namespace, name, revision, json } = object;
    Stored { namespace, name, revision, json }
}
