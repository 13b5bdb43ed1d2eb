//! What users notice when a network is cut off and when a gateway dies: decision 6.

use std::time::{Duration, Instant};

use crate::setup_mesh::{self, CONTEXTS, ready_pods};
use crate::traffic::{Sent, Traffic, figures};
use crate::world::{World, say, text};

/// The goal: 0 failed idempotent requests from the first moment, the slowest after 1.5 s. On a busy machine with
/// a debug build the slowest may take longer, but never as long as somebody waits who is not helped.
const SLOWEST: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn east_keeps_answering_and_west_comes_back() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--samples", "--yes"]).await;
    let clusters = world.clusters(&CONTEXTS).await;
    let sleep = ready_pods(&clusters[0].client, "sample", "sleep").await;
    let in_west = ready_pods(&clusters[2].client, "sample", "helloworld").await;
    let from_west = |sent: &Sent| !sent.failed() && in_west.contains(&sent.by);
    let west_serves = |sent: &[Sent]| sent.iter().filter(|s| from_west(s)).count() >= 3;

    let traffic = Traffic::start(&clusters[0].client, &sleep[0]);
    traffic.until("west serves", Instant::now(), west_serves).await;

    let cut = Instant::now();
    world.good(&["lab", "fault", "partition", "network-west", "-f", text(&file)]).await;
    let cut_off = Instant::now();
    let past = |sent: &[Sent]| sent.last().is_some_and(|s| s.at > cut_off + Duration::from_secs(4)) && sent.len() >= 40;
    traffic.until("4 s without west", cut_off, past).await;
    let healed = Instant::now();
    world.good(&["lab", "fault", "heal", "network-west", "-f", text(&file)]).await;
    traffic.until("west serves again", Instant::now(), west_serves).await;
    world.proven(&file, 9).await;

    let killed = Instant::now();
    world.good(&["lab", "fault", "kill", "context-west-1", "--gateway", "-f", text(&file)]).await;
    let dead = Instant::now();
    traffic.until("west serves through its new gateway", dead, west_serves).await;
    world.proven(&file, 9).await;

    let sent = traffic.end().await;
    let between = |from: Instant, to: Instant| -> Vec<Sent> {
        sent.iter().filter(|s| s.at >= from && s.at < to).cloned().collect()
    };
    let far = Instant::now();
    let partition = between(cut.checked_sub(Duration::from_secs(1)).unwrap(), healed);
    let gateway = between(killed.checked_sub(Duration::from_secs(1)).unwrap(), far);
    say(&figures("west cut off (goal: 0 failed, slowest 1.5 s)", &partition));
    say(&figures("west healed", &between(healed, killed)));
    say(&figures("gateway killed (goal: 0 failed, slowest 1.5 s)", &gateway));

    for (what, fault, sent) in [("partition", cut, &partition), ("gateway killed", killed, &gateway)] {
        let failed: Vec<_> = sent
            .iter()
            .filter(|s| s.failed() && s.at >= fault + Duration::from_secs(1))
            .map(|s| (s.at - fault, s))
            .collect();
        assert!(failed.is_empty(), "{what}: {failed:?}");
        let slowest = sent.iter().map(|s| s.took).max().unwrap_or_default();
        assert!(slowest < SLOWEST, "{what}: the slowest took {slowest:?}");
    }
    assert!(
        !between(cut_off + Duration::from_secs(1), healed).iter().any(from_west),
        "nobody answers from a cut-off network"
    );
}
