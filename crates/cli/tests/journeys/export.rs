//! A mesh as files: applied by the real kubectl as the tree's README says, it lacks what is secret and nothing else.

use std::path::Path;

use crate::world::{World, finish, text};

const MESH: &str = "apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: written}
spec:
  controlPlane: {engine: stolos}
  clusters:
  - {name: east, network: east}
  - {name: west, network: west}
";

/// The commands of the tree's README, without the objects that need a controller which a lab does not have.
fn commands(readme: &str) -> Vec<Vec<String>> {
    let lines = readme.lines().filter_map(|line| line.strip_prefix("kubectl "));
    let words = lines.map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    words
        .map(|words| {
            let mut kept: Vec<String> = Vec::new();
            for word in words {
                if word.contains("externalsecret-") {
                    kept.pop();
                } else {
                    kept.push(word);
                }
            }
            kept
        })
        .filter(|words| words.iter().any(|word| word == "-f"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_lacks_only_what_is_secret() {
    let Some(kubectl) = crate::programs::program("STOLOS_KUBECTL") else { return };
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    world.up(&file).await;
    let tree = world.path("tree");
    let export = ["export", "-f", text(&file), text(&tree)];
    world.good(&export).await;
    // Again: the same; a folder of somebody else's is left alone.
    world.good(&[&export[..], &["--dry-run"]].concat()).await;
    let refused = world.run(&["export", "-f", text(&file), text(&world.path("."))]).await.ends_with(1);
    assert!(refused.err.contains("is not empty, and no earlier export"), "{}", refused.err);

    let readme = std::fs::read_to_string(tree.join("README.md")).unwrap();
    let commands = commands(&readme);
    assert!(commands.len() > 4, "{readme}");
    for words in &commands {
        let mut command = world.program(&kubectl, words);
        command.current_dir(&tree);
        finish(command).await.ends_with(0);
    }

    // What is left to do is what no file may have.
    let plan = world.run(&["plan", "-f", text(&file), "-o", "json"]).await.ends_with(2).document();
    let left: Vec<_> = plan["steps"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|step| step["action"] != "wait")
        .map(|step| step["id"].as_str().unwrap())
        .collect();
    insta::assert_snapshot!(left.join("\n"), @r#"
    trust/root
    trust/east/cacerts
    trust/west/cacerts
    control/east/membership
    control/west/membership
    links/east/west
    links/west/east
    "#);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.proven(&file, 4).await;

    // Another format: what only the first one had goes.
    world.good(&[&export[..], &["--format", "kustomize"]].concat()).await;
    let mut build = world.program(&kubectl, ["kustomize", "clusters/east"]);
    build.current_dir(&tree);
    let built = finish(build).await.ends_with(0).out;
    assert!(built.contains("name: istio-eastwestgateway") && built.contains("kind: ExternalSecret"), "{built}");
    world.good(&[&export[..], &["--format", "flux"]].concat()).await;
    assert!(
        Path::new(&tree.join("flux/east.yaml")).is_file() && !tree.join("clusters/east/kustomization.yaml").exists()
    );
}
