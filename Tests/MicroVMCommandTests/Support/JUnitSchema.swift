import Testing

/// What readers of JUnit reports have in common: what stands in the schemas both of Jenkins' xUnit plugin
/// (junit-10.xsd) and of Maven's Surefire (surefire-test-report.xsd).
enum JUnitSchema {
    private struct Rule {
        var required: Set<String> = []
        var optional: Set<String> = []
        /// In this order.
        var children: [String] = []
        /// Those of the children of which there is only one.
        var single: Set<String> = []
        var hasText = false
    }

    private static let rules: [String: Rule] = [
        "testsuites": Rule(optional: ["name", "time", "tests", "failures", "errors"], children: ["testsuite"]),
        "testsuite": Rule(
            required: ["name", "tests", "failures", "errors", "skipped"],
            optional: ["time", "group"],
            children: ["properties", "testcase"]
        ),
        "properties": Rule(children: ["property"]),
        "property": Rule(required: ["name", "value"]),
        "testcase": Rule(
            required: ["name", "time"],
            optional: ["classname", "group"],
            children: ["failure", "skipped", "error", "system-out", "system-err"],
            single: ["skipped", "error", "system-out", "system-err"]
        ),
        "failure": Rule(required: ["type"], optional: ["message"], hasText: true),
        "error": Rule(required: ["type"], optional: ["message"], hasText: true),
        "skipped": Rule(optional: ["message"], hasText: true),
        "system-out": Rule(hasText: true),
        "system-err": Rule(hasText: true),
    ]

    /// Expects a document to be valid, and its numbers to be right.
    static func check(_ root: XMLElement) {
        #expect(root.name == "testsuites")
        check(element: root)
        for (attribute, count) in [("tests", "testcase"), ("failures", "failure"), ("errors", "error")] {
            let suites = root.children("testsuite")
            #expect(root.number(attribute) == suites.reduce(0) { $0 + ($1.number(attribute) ?? 0) })
            for suite in suites where count == "testcase" {
                #expect(suite.number(attribute) == suite.children(count).count)
            }
            for suite in suites where count != "testcase" {
                #expect(suite.number(attribute) == suite.children("testcase").count { !$0.children(count).isEmpty })
            }
        }
        for suite in root.children("testsuite") {
            #expect(suite.number("skipped") == suite.children("testcase").count { !$0.children("skipped").isEmpty })
        }
    }

    private static func check(element: XMLElement) {
        guard let rule = rules[element.name] else {
            Issue.record("There is an element \(element.name).")
            return
        }
        let attributes = Set(element.attributes.keys)
        #expect(rule.required.subtracting(attributes).isEmpty, "\(element.name) lacks attributes")
        #expect(attributes.subtracting(rule.required).subtracting(rule.optional).isEmpty, "of \(element.name)")
        if let time = element.attributes["time"] { #expect(time.wholeMatch(of: /[0-9]+\.[0-9]{3}/) != nil) }
        let positions = element.children.map { rule.children.firstIndex(of: $0.name) ?? -1 }
        #expect(!positions.contains(-1), "\(element.name) has strange children")
        #expect(positions == positions.sorted(), "the children of \(element.name) are in disorder")
        for name in rule.single { #expect(element.children(name).count <= 1) }
        if !rule.hasText { #expect(element.text.allSatisfy { $0.isWhitespace }) }
        // Nothing that does not show, or that makes a terminal do something.
        for text in Array(element.attributes.values) + [element.text] {
            for scalar in text.unicodeScalars where scalar != "\n" && scalar != "\t" {
                switch scalar.properties.generalCategory {
                case .control, .format, .unassigned, .surrogate, .privateUse: Issue.record("U+\(scalar.value) is there")
                default: break
                }
            }
        }
        for child in element.children { check(element: child) }
    }
}
