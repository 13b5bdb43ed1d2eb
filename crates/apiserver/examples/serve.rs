//! Serves an API in the folder given (or in memory) until Ctrl-C, and writes a kubeconfig beside it.
//!
//! `cargo run -p stolos-apiserver --example serve -- /tmp/api` and then `kubectl --kubeconfig /tmp/api/kubeconfig …`

use std::error::Error;
use std::path::PathBuf;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("stolos-api"), PathBuf::from);
    let server = stolos_apiserver::Builder::new().data_dir(&dir).start().await?;
    std::fs::write(dir.join("kubeconfig"), server.kubeconfig("example").to_string())?;
    tokio::signal::ctrl_c().await?;
    server.stop().await;
    Ok(())
}
