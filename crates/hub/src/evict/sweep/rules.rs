//! What the guard goes by, rule by rule, and that the sweep sees when one of them is not kept.

use super::faults::{of_three, target};
use super::world::Answer;
use super::{World, play};

/// A rule that can be broken: what the sweep cannot see broken, it does not show to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// As many stay good as people said (`evict::floor`).
    Floor,
    /// Nothing is made smaller without a last look at the others (`guard::last_look`).
    LastLook,
    /// What is silent counts for nothing (`Place::heard`).
    Silence,
    /// What nobody has asked just now counts for nothing, whatever the store says of it (`health::heard`).
    Unasked,
    /// What a member says of an older manifest is not said of the newest (`guard::said`).
    Generation,
    /// What goes counts for nothing (`guard::said`).
    Ending,
    /// What was asked to go may have gone, though the Work has been asked for more since (`guard::least_asked`).
    LeastAsked,
    /// A member's object is changed only if it is what was looked at.
    Precondition,
    /// A Service stays as long as pods that leave (`Place::needed`).
    Needed,
    /// Workloads leave one after the other (`evict::rate`).
    Rate,
    /// Fewer leave while many clusters are lost (`evict::rate`).
    Slower,
    /// The first write for a generation changes the object's revision (`label::WORK_GENERATION`).
    Mark,
    /// What a Work has let go of is not forgotten (`guard::left_behind`).
    LeftBehind,
    /// Nor when its binding goes (`guard::parting`).
    Parting,
    /// Where a workload has failed it does not go again (`application::Failures`).
    Failed,
}

/// Those that seeds see broken, and the seed to begin with: one of the last before the first that sees it.
const SEEN: [(Rule, u64); 12] = [
    (Rule::Floor, 0),
    (Rule::LastLook, 0),
    (Rule::Silence, 0),
    (Rule::Unasked, 1_200),
    (Rule::Generation, 14_900),
    (Rule::Ending, 600),
    (Rule::LeastAsked, 14_900),
    (Rule::Precondition, 1_900),
    (Rule::Needed, 0),
    (Rule::Rate, 0),
    (Rule::Slower, 4_900),
    (Rule::Failed, 0),
];

/// The same seeds that are played without a violation have one as soon as a rule is broken.
#[test]
fn a_broken_rule_is_seen() {
    let unseen: Vec<Rule> = (SEEN.into_iter())
        .filter(|(rule, from)| (*from..from + 3_000).all(|seed| play(seed, false, Some(*rule)).is_ok()))
        .map(|(rule, _)| rule)
        .collect();
    assert!(unseen.is_empty(), "{unseen:?} can be broken and nobody sees it");
}

/// A write that takes one replica away is on its way when its Work asks for that replica again: then it is counted on.
fn a_write_comes_late(off: Option<Rule>) -> World {
    let mut world = of_three();
    world.off = off;
    let of_ap = world.put_copy("ap", (4, 4), 1);
    let of_me = world.put_copy("me", (6, 6), 1);
    world.clusters_look("ap");
    world.clusters_look("me");
    world.list("ap");
    world.list("me");
    world.put_work(0, "ap".to_owned(), 3, 1, Some(of_ap));
    world.execute_look(0, "ap");
    let late = world.ops.pop().unwrap();
    world.give_up(late);
    let revision = world.apps[0].works["ap"].revision;
    world.put_work(0, "ap".to_owned(), 4, 1, Some(revision));
    for _ in 0..2 {
        world.execute_look(0, "ap");
        world.finish();
        let World { members, chance, now, .. } = &mut world;
        members.get_mut("ap").unwrap().work(*now, chance);
        world.list("ap");
    }
    world.put_work(0, "me".to_owned(), 5, 1, Some(of_me));
    world.execute_look(0, "me");
    world.finish();
    assert_eq!(world.members["me"].ready(0), 5, "the four in ap are counted on");
    let late = world.late.pop().unwrap();
    world.arrive(late, Answer::Late);
    world
}

#[test]
fn a_write_that_comes_late_changes_nothing() {
    assert_eq!(a_write_comes_late(None).violation, None);
    let broken = a_write_comes_late(Some(Rule::Mark)).violation.unwrap();
    assert!(broken.contains("0 in ap went from 4 to 3 ready, which leaves 8 of 9"), "{broken}");
}

/// A Work goes, its copy is wanted again and is let go of.
fn let_go_of(off: Option<Rule>) -> World {
    let mut world = of_three();
    world.off = off;
    for (name, replicas) in [("ap", 4), ("eu", 4), ("me", 5)] {
        world.put_copy(name, (replicas, replicas), 1);
    }
    world.end_work("eu");
    world.apps[0].binding.spec.clusters.insert(1, target("eu", 4));
    world.execute_look(0, "eu");
    assert!(!world.apps[0].works.contains_key("eu"), "it is let go of");
    world
}

/// Before another Work is made the copy that was let go of is not wanted any more. It was found by seed 3,271.
fn nobody_has_it(off: Option<Rule>) -> World {
    let mut world = let_go_of(off);
    world.apps[0].binding.spec.clusters.remove(1);
    world.heal();
    world
}

#[test]
fn what_is_let_go_of_is_not_forgotten() {
    let world = nobody_has_it(None);
    assert_eq!((world.violation.as_deref(), world.members["eu"].ready(0)), (None, 0));
    assert!(nobody_has_it(Some(Rule::LeftBehind)).violation.is_some_and(|why| why.contains("does not settle")));
}

/// Before another Work is made for the copy that was let go of, its template is deleted.
fn it_is_deleted(off: Option<Rule>) -> World {
    let mut world = let_go_of(off);
    world.delete(0);
    world.heal();
    world
}

#[test]
fn what_is_let_go_of_goes_with_its_binding() {
    let world = it_is_deleted(None);
    assert_eq!((world.violation.as_deref(), world.members["eu"].ready(0)), (None, 0));
    let broken = it_is_deleted(Some(Rule::Parting)).violation.unwrap();
    assert!(broken.contains("0 is gone, and eu still has it"), "{broken}");
}
