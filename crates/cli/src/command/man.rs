use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::command::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `stolos man`
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// A folder to write the page of every command into; without it the first one goes to the output
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(crate) fn run(args: &ManArgs, screen: &Screen) -> Result<Exit, Failure> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
        rendered.map_err(|error| Failure::caused(&error).while_doing("could not write the manual page"))?;
        screen.data(&String::from_utf8_lossy(&page));
        return Ok(Exit::Good);
    };
    let written =
        std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder.as_path()));
    written.map_err(|error| {
        Failure::caused(&error).while_doing(format!("could not write manual pages into {}", folder.display()))
    })?;
    screen.say(&format!("`man -M` does not find them there by itself: `man {}`", folder.join("stolos.1").display()));
    Ok(Exit::Good)
}
