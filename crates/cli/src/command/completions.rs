use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::command::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `stolos completions`
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[expect(clippy::unnecessary_wraps, reason = "commands have one shape")]
pub(crate) fn run(args: &CompletionsArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stolos", &mut script);
    screen.data(&String::from_utf8_lossy(&script));
    Ok(Exit::Good)
}
