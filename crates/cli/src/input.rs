//! What a command is given: files, flags and environment, understood before any work starts.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use stolos_cluster::{Cluster, Kubeconfig, connect};
use stolos_plan::quoted;
use stolos_spec::{HUB, Mesh, Origin, Reading, Sample, SourceText, Told};

use crate::failure::Failure;
use crate::screen::{Output, Screen, count};

/// Which mesh.
#[derive(Args, Clone, Debug)]
pub(crate) struct MeshArgs {
    /// The mesh: a `Mesh`, a topology.yaml (with its base.yaml beside it), a ristioctl file, Karmada's policies, or the
    /// files of a shared control plane; `-` is standard input
    #[arg(short, long, value_name = "FILE", env = "STOLOS_FILE")]
    pub(crate) file: Vec<PathBuf>,

    /// Helm values to lay over what Stolos computes, or the gateway that `gen-eastwest-gateway.sh` printed
    #[arg(long, value_name = "FILE")]
    pub(crate) base: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) told: ToldArgs,

    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// Over what the files of other systems have no place for.
const LEFT_OUT: &str = "What other systems' files leave out";

/// What the files of other systems have no place for.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ToldArgs {
    /// The cluster whose control plane the others share
    #[arg(long, value_name = "CONTEXT[=NETWORK]", help_heading = LEFT_OUT)]
    primary: Option<String>,

    /// A cluster that shares it
    #[arg(long, value_name = "CONTEXT[=NETWORK]", requires = "primary", help_heading = LEFT_OUT)]
    remote: Vec<String>,

    /// The mesh's name, where no file says it
    #[arg(long, value_name = "ID", env = "MESH_ID", hide_env_values = true, help_heading = LEFT_OUT)]
    mesh_id: Option<String>,
}

impl ToldArgs {
    fn told(&self) -> Told {
        let cluster = |text: &String| match text.rsplit_once('=') {
            Some((context, network)) => (context.to_owned(), Some(network.to_owned())),
            None => (text.clone(), None),
        };
        Told {
            name: self.mesh_id.clone().filter(|name| !name.is_empty()),
            primary: self.primary.as_ref().map(cluster),
            remotes: self.remote.iter().map(cluster).collect(),
        }
    }
}

impl ToldArgs {
    /// The same, for an archive.
    pub(crate) fn manifest(&self) -> stolos_check::bundle::ManifestTold {
        let Told { name, primary, remotes } = self.told();
        stolos_check::bundle::ManifestTold { name, primary, remotes, base: None }
    }
}

/// Where things are remembered.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct StateArgs {
    /// The state folder: root key and journal [default: ~/.local/state/stolos/MESH]
    #[arg(long, value_name = "DIR", env = "STOLOS_STATE")]
    pub(crate) state: Option<PathBuf>,
}

/// How to reach clusters.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClusterArgs {
    /// The kubeconfig to find the contexts in [default: the mesh file's own, $KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// Which mesh, and how to reach its clusters.
#[derive(Args, Clone, Debug)]
pub(crate) struct BuiltArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    clusters: ClusterArgs,
}

impl BuiltArgs {
    /// Reads the mesh and connects its clusters. Nothing is asked of them yet.
    pub(crate) async fn connect(&self, screen: &Screen) -> Result<(Mesh, Vec<Cluster>), Failure> {
        let mesh = self.mesh.read(screen)?;
        let clusters = clusters(&mesh, &self.mesh, &self.clusters).await?;
        Ok((mesh, clusters))
    }

    /// The hub, where clusters of the mesh are read through it: connected, or why it cannot be.
    pub(crate) async fn hub(&self, mesh: &Mesh) -> Option<Result<Cluster, String>> {
        let hub = mesh.hub.as_ref().filter(|_| mesh.uses_tunnel())?;
        let connecting = async {
            let file = hub.kubeconfig.as_deref().or(self.clusters.kubeconfig.as_deref());
            let kubeconfig = Kubeconfig::find(file, None)?;
            connect(&kubeconfig, &hub.context, HUB).await
        };
        Some(connecting.await.map_err(|error| stolos_serve::because(&error)))
    }

    /// The file that the mesh is read from.
    pub(crate) fn path(&self) -> Result<PathBuf, Failure> {
        self.mesh.path()
    }

    /// The state folder of the mesh.
    pub(crate) fn state(&self, mesh: &Mesh) -> Result<PathBuf, Failure> {
        self.mesh.state(mesh)
    }

    /// Another command about the same mesh, as a person would type it.
    pub(crate) fn other(&self, command: &str) -> String {
        let MeshArgs { file, base, told: ToldArgs { primary, remote, mesh_id: _ }, state: StateArgs { state } } =
            &self.mesh;
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        let given = [
            ("-f", file.iter().map(path).collect()),
            ("--base", base.iter().map(path).collect()),
            ("--primary", primary.iter().cloned().collect()),
            ("--remote", remote.clone()),
            ("--state", state.iter().map(path).collect()),
            ("--kubeconfig", self.clusters.kubeconfig.iter().map(path).collect::<Vec<_>>()),
        ];
        let flags =
            given.iter().flat_map(|(flag, values)| values.iter().map(move |v| format!(" {flag} {}", quoted(v))));
        format!("stolos {command}{}", flags.collect::<String>())
    }

    /// The same, for a command that will ask every cluster, and says so.
    pub(crate) async fn ask(&self, screen: &Screen) -> Result<(Mesh, Vec<Cluster>), Failure> {
        let (mesh, clusters) = self.connect(screen).await?;
        screen.line(format!("Asking {}", count(clusters.len(), "cluster")));
        Ok((mesh, clusters))
    }
}

/// How to print data.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// How data is printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Output,
}

/// Samples asked for on the command line.
#[derive(Args, Clone, Debug)]
pub(crate) struct SampleArgs {
    /// Install samples along: `helloworld,sleep` where no names are given
    #[arg(long, value_name = "NAMES", num_args = 0..=1, require_equals = true, default_missing_value = "helloworld,sleep", value_delimiter = ',')]
    pub(crate) samples: Vec<SampleName>,
}

/// A sample by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SampleName {
    /// A service in every cluster that says which version answered
    Helloworld,
    /// A client in every cluster
    Sleep,
    /// Istio's book shop
    Bookinfo,
}

impl From<SampleName> for Sample {
    fn from(name: SampleName) -> Self {
        match name {
            SampleName::Helloworld => Self::Helloworld,
            SampleName::Sleep => Self::Sleep,
            SampleName::Bookinfo => Self::Bookinfo,
        }
    }
}

impl MeshArgs {
    /// Reads the mesh, and says what it warns of.
    pub(crate) fn read(&self, screen: &Screen) -> Result<Mesh, Failure> {
        let reading = self.reading(screen)?;
        reading.warnings.iter().for_each(|warning| screen.warning(warning));
        Ok(reading.mesh)
    }

    /// Reads the mesh where only its name matters.
    pub(crate) fn read_quietly(&self, screen: &Screen) -> Result<Mesh, Failure> {
        self.reading(screen).map(|reading| reading.mesh)
    }

    fn reading(&self, screen: &Screen) -> Result<Reading, Failure> {
        let (files, base) = self.sources(screen)?;
        self.understood(&files, base.as_ref())
    }

    /// The texts of the mesh's files, and of the base that is laid over them.
    pub(crate) fn sources(&self, screen: &Screen) -> Result<(Vec<SourceText>, Option<SourceText>), Failure> {
        let path = self.path()?;
        let files = if self.file.is_empty() { std::slice::from_ref(&path) } else { &self.file[..] };
        let files = files.iter().map(|path| source(path)).collect::<Result<Vec<_>, _>>()?;
        let topology = files.len() == 1 && stolos_spec::recognise(&files[0]) == Some(Origin::Topology);
        let base = match &self.base {
            Some(base) => Some(source(base)?),
            None if topology => match path.with_file_name("base.yaml") {
                beside if beside.is_file() => {
                    screen.line(format!("Reading {} with {}", path.display(), beside.display()));
                    Some(source(&beside)?)
                }
                _ => None,
            },
            None => None,
        };
        Ok((files, base))
    }

    /// The mesh that these texts are.
    pub(crate) fn understood(&self, files: &[SourceText], base: Option<&SourceText>) -> Result<Reading, Failure> {
        let mut reading = stolos_spec::read_all(files, base, &self.told.told())?;
        let mesh = &mut reading.mesh;
        // setup-mesh.sh took the organization from the environment; a topology.yaml has no place for it.
        if mesh.origin == Origin::Topology
            && let Some(organization) = std::env::var("ORG_NAME").ok().filter(|o| !o.trim().is_empty())
        {
            mesh.trust.organization = organization;
        }
        Ok(reading)
    }

    pub(crate) fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(file) = self.file.first() {
            return Ok(file.clone());
        }
        let usual = ["mesh.yaml", "topology.yaml"];
        usual.iter().map(PathBuf::from).find(|p| p.is_file()).ok_or_else(|| {
            Failure::new("no mesh file is named, and there is no mesh.yaml or topology.yaml here")
                .hint("name one with `-f FILE`")
                .hint("`stolos init CONTEXT=NETWORK…` writes one; `stolos demo` needs none")
        })
    }

    /// The state folder of a mesh.
    pub(crate) fn state(&self, mesh: &Mesh) -> Result<PathBuf, Failure> {
        self.state.folder(mesh.name.as_str())
    }

    /// The files as they are, with names for an archive; not what came over standard input.
    pub(crate) fn given(&self) -> Vec<(String, String)> {
        let Ok(path) = self.path() else { return Vec::new() };
        let files = if self.file.is_empty() { vec![path.clone()] } else { self.file.clone() };
        let beside = path.with_file_name("base.yaml");
        let base = self.base.clone().or_else(|| (files.len() == 1 && beside.is_file()).then_some(beside));
        let read = |(index, path): (usize, &PathBuf)| {
            let text = std::fs::read_to_string(path).ok()?;
            Some((format!("{}-{}", index + 1, path.file_name()?.to_string_lossy()), text))
        };
        files.iter().chain(base.as_ref()).enumerate().filter_map(read).collect()
    }

    /// Which of [`given`](Self::given) was the base.
    pub(crate) fn given_base(&self) -> Option<String> {
        let files = self.file.len().max(1);
        self.given().into_iter().nth(files).map(|(name, _)| format!("mesh/{name}"))
    }
}

impl StateArgs {
    /// `--state`, `$STOLOS_STATE`, else `${XDG_STATE_HOME:-~/.local/state}/stolos/<name>`.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        if let Some(state) = self.state.as_ref().filter(|s| !s.as_os_str().is_empty()) {
            return std::path::absolute(state).map_err(|e| Failure::caused(&e));
        }
        let absolute = |path: &PathBuf| path.is_absolute();
        let base = std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .filter(absolute)
            .or_else(|| std::env::home_dir().filter(absolute).map(|home| home.join(".local/state")));
        let base = base.ok_or_else(|| {
            Failure::new("there is no home folder to keep the mesh's state in").hint("name a folder with `--state DIR`")
        })?;
        Ok(base.join("stolos").join(name))
    }
}

pub(crate) fn source(path: &Path) -> Result<SourceText, Failure> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let name = if path == Path::new("-") { Path::new("<stdin>") } else { path };
    match text {
        Ok(text) => Ok(SourceText::new(name, text)),
        Err(error) => {
            let failure = Failure::caused(&error).while_doing(format!("could not read {}", name.display()));
            Err(match error.kind() {
                std::io::ErrorKind::NotFound => failure.hint("name a mesh file with `-f FILE`"),
                _ => failure,
            })
        }
    }
}

/// Connects every cluster of the mesh, in the order of the file. Nothing is asked of them yet.
async fn clusters(mesh: &Mesh, files: &MeshArgs, args: &ClusterArgs) -> Result<Vec<Cluster>, Failure> {
    let state = files.state(mesh)?;
    let connecting = async {
        let mut clusters = Vec::new();
        for cluster in &mesh.clusters {
            let kubeconfig = Kubeconfig::find(args.kubeconfig.as_deref(), cluster.kubeconfig.as_deref())?;
            clusters.push(connect(&kubeconfig, &cluster.context, cluster.name.as_str()).await?);
        }
        Ok(clusters)
    };
    connecting.await.map_err(|error| with_lab(error, &state))
}

/// A lab's kubeconfig is never taken without being asked for, but it is worth a word.
pub(crate) fn with_lab(error: stolos_cluster::Error, state: &Path) -> Failure {
    let lab = state.join("kubeconfig");
    let failure = Failure::from(error);
    if lab.is_file() {
        failure.hint(format!("a lab of this mesh is here: `export KUBECONFIG={}`", lab.display()))
    } else {
        failure
    }
}
