//! A storage node: reactors, connections and devices wired to the state machines
