//! Every graph of the suites survives the artefact: written, read back, the same; and written again,
//! the same bytes.

use requant_conformance::suite;
use requant_model::artifact;

#[test]
fn graphs_survive_the_artefact() {
    let cases = suite::all(6, 3);
    for case in &cases {
        let bytes = artifact::write(&case.graph).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let graph = artifact::read(&bytes).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(graph, case.graph, "{}", case.name);
        assert_eq!(artifact::write(&graph).unwrap(), bytes, "{}", case.name);
    }
    println!("{} graphs", cases.len());
}
