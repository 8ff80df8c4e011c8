/// `<A, B where A: P>`.
struct DemangledSignature: Sendable {
    /// How many parameters there are at each depth.
    var counts: [Int]
    /// What stands before the first parameter, `each ` or `let `. Of others it is not written.
    var marker: String
    var requirements: [[DemanglingPart]]
}
