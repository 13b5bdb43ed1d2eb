//! Three questions, for whoever runs `stolos init` on a terminal and names nothing.

use stolos_spec::{MeshName, suggest_name};

use crate::screen::Screen;

/// What was answered.
#[derive(Debug, PartialEq)]
pub(super) struct Answers {
    pub(super) name: String,
    pub(super) contexts: Vec<(String, Option<String>)>,
}

/// Asks; `None` where nobody can answer, or there is nothing to choose from.
pub(super) fn ask(have: Vec<&str>, screen: &Screen) -> Option<Answers> {
    if have.is_empty() {
        return None;
    }
    let name = screen.ask_for("What is the mesh to be called?", "mesh")?;
    let name =
        if MeshName::parse(&name).is_ok() { name } else { suggest_name(&name).unwrap_or_else(|| "mesh".to_owned()) };
    for (index, context) in have.iter().enumerate() {
        screen.say(&format!("  {}  {context}", index + 1));
    }
    let chosen = loop {
        let answer = screen.ask_for("Which of these contexts are its clusters? Numbers, or", "all")?;
        match numbers(&answer, have.len()) {
            Ok(chosen) => break chosen,
            Err(why) => screen.say(&why),
        }
    };
    let groups = loop {
        let question =
            "Which of them can dial each other's pods? Numbers of one network, `/`, those of the next, or `all`, or";
        let answer = screen.ask_for(question, "none")?;
        match groups(&answer, &chosen) {
            Ok(groups) => break groups,
            Err(why) => screen.say(&why),
        }
    };
    let contexts = chosen.iter().filter_map(|index| {
        let network = groups.iter().position(|group| group.contains(index))?;
        Some(((*have.get(index - 1)?).to_owned(), Some(format!("network-{}", network + 1))))
    });
    Some(Answers { name, contexts: contexts.collect() })
}

/// `1 3`, `1,3`, `1-3`, `all`.
fn numbers(answer: &str, most: usize) -> Result<Vec<usize>, String> {
    if answer.eq_ignore_ascii_case("all") {
        return Ok((1..=most).collect());
    }
    let mut found = Vec::new();
    for word in answer.split([',', ' ']).filter(|word| !word.is_empty()) {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last && last <= most => {
                found.extend((first..=last).filter(|n| !found.contains(n)).collect::<Vec<_>>());
            }
            _ => {
                return Err(format!(
                    "`{word}` is none of them: write numbers from 1 to {most}, such as `1 2` or `1-{most}`"
                ));
            }
        }
    }
    if found.is_empty() { Err("choose at least one".to_owned()) } else { Ok(found) }
}

/// The networks: `all` one, `none` each its own, else groups, and whoever is in none has one of its own.
fn groups(answer: &str, chosen: &[usize]) -> Result<Vec<Vec<usize>>, String> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    match answer.to_lowercase().as_str() {
        "all" => return Ok(vec![chosen.to_vec()]),
        "none" => {}
        _ => {
            let most = chosen.iter().copied().max().unwrap_or(0);
            for part in answer.split('/') {
                let group = numbers(part, most)?;
                if let Some(other) = group.iter().find(|index| !chosen.contains(index)) {
                    return Err(format!("{other} was not chosen"));
                }
                if let Some(twice) = group.iter().find(|index| groups.iter().flatten().any(|known| known == *index)) {
                    return Err(format!("{twice} is on two networks"));
                }
                groups.push(group);
            }
        }
    }
    let alone: Vec<_> = chosen.iter().filter(|index| !groups.iter().flatten().any(|known| known == *index)).collect();
    groups.extend(alone.into_iter().map(|index| vec![*index]));
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_chosen_by_number() {
        assert_eq!(numbers("all", 3), Ok(vec![1, 2, 3]));
        assert_eq!(numbers("1, 3", 3), Ok(vec![1, 3]));
        assert_eq!(numbers("1-2 2", 3), Ok(vec![1, 2]));
        for wrong in ["", "0", "4", "2-1", "x", "99999999999999999999999"] {
            assert!(numbers(wrong, 3).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_are_groups_of_them() {
        assert_eq!(groups("none", &[1, 3]), Ok(vec![vec![1], vec![3]]));
        assert_eq!(groups("all", &[1, 3]), Ok(vec![vec![1, 3]]));
        assert_eq!(groups("1 2 / 4", &[1, 2, 3, 4]), Ok(vec![vec![1, 2], vec![4], vec![3]]));
        for wrong in ["1 / 1", "2", "1 /"] {
            assert!(groups(wrong, &[1, 3]).is_err(), "{wrong}");
        }
    }
}
