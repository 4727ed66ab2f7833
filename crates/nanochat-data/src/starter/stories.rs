//! Short stories: a hero, a place and a trouble, told in beats. Plots are in `data/stories.txt`.

use super::exchange::Exchange;
use super::grade::Grade;
use super::mix::HELD_ONE_IN;
use super::rng::{Rng, bucket};
use super::table::{capital, fill_with};

/// Beats of a plot: trouble, trying, a friend, the end.
const BEATS: usize = 4;

/// One plot with alternatives for each beat.
#[derive(Clone, Debug)]
struct Plot {
    /// The thing in the middle; every telling names it.
    key: &'static str,
    /// Follows "a fox who".
    who: &'static str,
    beats: [Vec<&'static str>; BEATS],
}

/// All plots.
#[derive(Clone, Debug)]
pub(super) struct Stories {
    seed: u64,
    plots: Vec<Plot>,
}

/// What a story is about.
struct Cast<'a> {
    kind: &'static str,
    mood: &'static str,
    place: &'static str,
    plot: &'a Plot,
}

impl Stories {
    /// Reads the plots.
    pub(super) fn new(seed: u64) -> Stories {
        let mut plots: Vec<Plot> = Vec::new();
        for line in include_str!("data/stories.txt").lines().filter(|l| !l.starts_with('#')) {
            let (tag, text) = line.split_once(' ').expect("a tag, a space, and the text");
            if tag == "P" {
                let (key, who) = text.split_once(" | ").expect("key | who");
                plots.push(Plot { key, who, beats: Default::default() });
            } else {
                let beat: usize = tag.parse().expect("a beat has a number");
                plots.last_mut().expect("a plot starts with P").beats[beat - 1].push(text);
            }
        }
        Stories { seed, plots }
    }

    fn cast(&self, held: bool, rng: &mut Rng) -> Cast<'_> {
        loop {
            let c = Cast {
                kind: rng.pick::<&str>(&KINDS),
                mood: rng.pick::<&str>(&MOODS),
                place: rng.pick::<&str>(&PLACES),
                plot: rng.pick(&self.plots),
            };
            let key = format!("{}|{}|{}", c.kind, c.place, c.plot.key);
            if (bucket(self.seed, "story", &key, HELD_ONE_IN) == 0) == held {
                return c;
            }
        }
    }

    /// A document.
    pub(super) fn document(&self, rng: &mut Rng) -> String {
        let cast = self.cast(false, rng);
        let story = tell(&cast, rng);
        match rng.below(10) {
            0..2 => story,
            2..4 => format!("{}\n\n{story}", title(&cast, rng)),
            // What a wish in a chat names decides the story here too.
            _ => format!("{}\n\n{story}", wish(&asked(&cast), rng)),
        }
    }

    /// A wish for a story, and the story.
    pub(super) fn exchange(&self, rng: &mut Rng) -> Exchange {
        let cast = self.cast(false, rng);
        let (mood, kind, place, who) = (cast.mood, cast.kind, cast.place, cast.plot.who);
        let about = match rng.below(10) {
            0 => return Exchange::text(*rng.pick(&OPEN_WISHES), tell(&cast, rng)),
            1 => kind.to_string(),
            2 => format!("{mood} {kind}"),
            3 => format!("{kind} {place}"),
            4 => format!("{kind} who {who}"),
            5 => format!("{mood} {kind} {place}"),
            6 => format!("{mood} {kind} who {who}"),
            _ => format!("{kind} {place} who {who}"),
        };
        Exchange::text(wish(&about, rng), tell(&cast, rng))
    }

    /// A wish for a hero, a place and a trouble that never came together.
    pub(super) fn test(&self, rng: &mut Rng) -> (Exchange, Grade) {
        let cast = self.cast(true, rng);
        let about = asked(&cast);
        let place = cast.place.rsplit("the ").next().unwrap_or(cast.place);
        let wanted = [cast.kind, place, cast.plot.key].map(str::to_string).to_vec();
        (Exchange::text(wish(&about, rng), tell(&cast, rng)), Grade::Mentions(wanted))
    }
}

/// `fox in the rose garden who lost a red hat`.
fn asked(cast: &Cast<'_>) -> String {
    format!("{} {} who {}", cast.kind, cast.place, cast.plot.who)
}

fn wish(about: &str, rng: &mut Rng) -> String {
    let template = *rng.pick(&[
        "Tell me a story about {a k}.",
        "Please tell me a story about {a k}.",
        "I would like to hear a story about {a k}.",
        "Can you tell me a story about {a k}?",
        "Write a short story about {a k}.",
    ]);
    fill_with(template, &[("k", about)])
}

const OPEN_WISHES: [&str; 5] = [
    "Tell me a story.",
    "Do you know a story?",
    "I cannot sleep. Tell me a story.",
    "Please tell me a short story.",
    "I am bored. A story, please!",
];

fn title(cast: &Cast<'_>, rng: &mut Rng) -> String {
    let template =
        *rng.pick(&["The {kind} and the {key}", "The {mood} {kind}", "A story of {a kind}"]);
    fill_with(template, &[("kind", cast.kind), ("key", cast.plot.key), ("mood", cast.mood)])
}

fn tell(cast: &Cast<'_>, rng: &mut Rng) -> String {
    let names = rng.sample(&NAMES, 2);
    let friends: Vec<&str> = KINDS.iter().copied().filter(|k| *k != cast.kind).collect();
    let (he, his, him) = *rng.pick(&[("he", "his", "him"), ("she", "her", "her")]);
    let values = [
        ("n", *names[0]),
        ("f", *names[1]),
        ("kind", cast.kind),
        ("fkind", *rng.pick(&friends)),
        ("mood", cast.mood),
        ("place", cast.place),
        ("he", he),
        ("his", his),
        ("him", him),
    ];
    let mut parts = vec![*rng.pick(&OPENINGS)];
    if rng.chance(50) {
        parts.push(*rng.pick(&HABITS));
    }
    for beat in &cast.plot.beats {
        parts.push(*rng.pick(beat));
    }
    if rng.chance(35) {
        parts.push(*rng.pick(&ENDINGS));
    }
    let told: Vec<String> = parts.iter().map(|p| capital(&fill_with(p, &values))).collect();
    told.join(" ")
}

const OPENINGS: [&str; 6] = [
    "Once upon a time, {a mood} {kind} named {n} lived {place}.",
    "There was once {a mood} {kind} called {n}, who lived {place}.",
    "{Place} there lived {a mood} {kind}. The name of the {kind} was {n}.",
    "A long time ago, {place}, there was {a mood} {kind} named {n}.",
    "{N} was {a mood} {kind} and lived {place}.",
    "Do you know {n}, the {mood} {kind} who lives {place}? This is a true story.",
];

const HABITS: [&str; 8] = [
    "{N} liked warm soup and long naps.",
    "Every morning {n} said hello to the sun.",
    "{N} had a small garden and a big hat.",
    "Most days {n} did nothing at all, and did it well.",
    "{N} was good at many things, but not at getting up.",
    "In the evening {n} counted the stars, but never got to the end.",
    "{N} talked to the trees, and sometimes they seemed to nod.",
    "{N} had one rule: never be late for cake.",
];

const ENDINGS: [&str; 7] = [
    "And that is the end.",
    "The end.",
    "And if they are not asleep, they are still laughing.",
    "That night the stars were very bright.",
    "\"What a day,\" said {n}.",
    "Then they had soup.",
    "{F} still tells this story every winter.",
];

const KINDS: [&str; 20] = [
    "fox", "bear", "rabbit", "mouse", "owl", "frog", "duck", "goat", "hedgehog", "cat", "dog",
    "squirrel", "turtle", "donkey", "penguin", "mole", "pig", "goose", "snail", "robot",
];

const MOODS: [&str; 14] = [
    "brave", "shy", "clever", "small", "lazy", "kind", "hungry", "curious", "proud", "sleepy",
    "funny", "old", "young", "polite",
];

/// Said after "lived"; what follows "the" is what a story has to mention.
const PLACES: [&str; 14] = [
    "in the green forest",
    "by the old mill",
    "near the quiet lake",
    "on the windy hill",
    "behind the red barn",
    "under the tall oak",
    "at the edge of the sea",
    "in the deep valley",
    "by the long river",
    "in the rose garden",
    "next to the bakery",
    "on the small island",
    "in the snowy mountains",
    "near the stone tower",
];

const NAMES: [&str; 24] = [
    "Pip", "Momo", "Bo", "Tilly", "Fern", "Dot", "Rufus", "Nib", "Hazel", "Otto", "Plum",
    "Biscuit", "Minna", "Zig", "Wilf", "Coco", "Basil", "Poppy", "Tock", "Juno", "Mop", "Figgy",
    "Luna", "Sprout",
];
