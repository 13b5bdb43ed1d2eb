//! What a person reads first in the tree.

use std::fmt::Write as _;

use crate::release::quoted;

use super::{Format, Part, Tree};

pub(super) fn file(tree: &mut Tree<'_>, parts: &[Part]) {
    let mut text = format!(
        "# Mesh {}\n\nWritten by `stolos export`; export again rather than editing it. There is no secret in it.\n\n",
        tree.mesh
    );
    if !tree.notes.is_empty() {
        text += "## To do, and to know\n\n";
        for note in &tree.notes {
            let _ = writeln!(text, "* {note}");
        }
        text.push('\n');
    }
    text += match tree.options.format {
        Format::Plain => "## Cluster by cluster, folder by folder\n\nGo on when what a folder made is ready.\n",
        Format::Kustomize => {
            "## Cluster by cluster\n\n`kubectl` does not wait between kinds and the objects of those kinds, nor for a control \
             plane: apply it again until it succeeds.\n"
        }
        Format::ArgoCd => {
            "## Argo CD\n\nWhere Argo CD runs, with clusters registered under the names of the mesh's:\n\n```sh\nkubectl apply \
             -f applicationset.yaml\n```\n\nA cluster's objects come in waves, its releases beside them; what comes too early \
             is tried again.\n"
        }
        Format::Flux => "## Flux\n\nIn each cluster, after `flux bootstrap` with this repository:\n",
    };
    for part in parts {
        let context = quoted(&part.context);
        let _ = match tree.options.format {
            Format::ArgoCd => Ok(()),
            Format::Flux => {
                writeln!(text, "\n```sh\nkubectl --context {context} apply -f flux/{}.yaml\n```", part.cluster)
            }
            Format::Kustomize => writeln!(
                text,
                "\n```sh\nkubectl kustomize --enable-helm clusters/{} | kubectl --context {context} apply --server-side --field-manager=stolos -f -\n```",
                part.cluster
            ),
            Format::Plain => {
                let _ = writeln!(text, "\n```sh\n# {}", part.cluster);
                for (number, wave) in &part.waves {
                    let _ = writeln!(text, "# {number:02}");
                    if !wave.files.is_empty() {
                        let files: Vec<_> = wave
                            .files
                            .iter()
                            .map(|path| format!("-f {}", quoted(&format!("clusters/{}/{path}", part.cluster))))
                            .collect();
                        let _ = writeln!(
                            text,
                            "kubectl --context {context} apply --server-side --field-manager=stolos {}",
                            files.join(" ")
                        );
                    }
                    for (release, values) in &wave.releases {
                        let values = format!("clusters/{}/{values}", part.cluster);
                        let command = release.arguments(&part.context, &values, 120);
                        let _ = writeln!(text, "{}", crate::release::shell("helm", &command));
                    }
                    for (operator, document) in &wave.operators {
                        let document = format!("clusters/{}/{document}", part.cluster);
                        let command = operator.install(&part.context, &document, 120);
                        let _ = writeln!(text, "{}", crate::release::shell("istioctl", &command));
                    }
                }
                writeln!(text, "```")
            }
        };
    }
    tree.files.insert("README.md".to_owned(), text);
}
