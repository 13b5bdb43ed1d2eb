//! A line of the mesh file comes and goes by command, and the cluster with it: alive, and dead.

use crate::world::{World, text};

const MESH: &str = "\
# Two clusters, and a third that comes and goes.
apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: members}
spec:
  clusters:
    - name: east
      context: east      # the old one
      network: network-east
    # far away
    - name: west
      context: west
      network: network-west
  # that is all
  samples: [helloworld, sleep]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_added_and_removed_alive_and_dead() {
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    let north = "    - name: north\n      context: north\n      network: network-north\n";
    let all = MESH.replace("  # that is all", &format!("{north}  # that is all"));
    let everyone = world.write("lab.yaml", &all);
    world.up(&everyone).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let now = || std::fs::read_to_string(&file).unwrap();

    let add = ["cluster", "add", "north", "--network", "network-north", "-f", text(&file)];
    let only = world.run(&[&add[..], &["--dry-run"]].concat()).await.ends_with(2);
    assert!(only.err.contains("+    - name: north") && now() == MESH, "{}", only.err);
    let nowhere = world.run(&["cluster", "add", "south", "--context", "nowhere", "-f", text(&file)]).await.ends_with(1);
    assert!(nowhere.err.contains("no context `nowhere`") && now() == MESH, "{}", nowhere.err);
    world.good(&add).await;
    assert_eq!(now(), all);
    world.proven(&file, 9).await;
    let again = world.run(&add).await.ends_with(1);
    assert!(again.err.contains("north is in the mesh already"), "{}", again.err);

    // What takes something away is never done unasked, and then the file stays as well.
    let remove = ["cluster", "remove", "north", "-f", text(&file)];
    world.run(&remove).await.ends_with(1);
    assert_eq!(now(), all);
    world.good(&[&remove[..], &["--yes"]].concat()).await;
    assert_eq!(now(), MESH);
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 4).await;

    // Back, and then it dies: the others forget it, and what cannot be cleaned is said.
    world.good(&[&add[..], &["--no-apply"]].concat()).await;
    assert_eq!(now(), all);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["lab", "fault", "kill", "north", "-f", text(&everyone)]).await;
    let dead = world.run(&[&remove[..], &["--yes"]].concat()).await.ends_with(4);
    assert!(dead.out.contains("left the mesh file and cannot be cleaned"), "{}{}", dead.out, dead.err);
    assert_eq!(now(), MESH);
    world.proven(&file, 4).await;
}
