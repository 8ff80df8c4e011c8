#if Server
import Foundation
import Synchronization
import Testing
import Yams

@testable import MicroVMServer

/// docs/openapi.yaml, against which every answer is checked that the tests get.
final class APIDescription: Sendable {
    static let shared = try! APIDescription()

    private let document: JSONNode
    /// The operations that have been answered with success.
    private let used = Mutex<Set<String>>([])

    private init() throws {
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        let text = try String(contentsOf: root.appending(path: "docs/openapi.yaml"), encoding: .utf8)
        document = JSONNode(yaml: try Yams.load(yaml: text))
    }

    /// The names of all operations.
    var operations: Set<String> {
        Set(document["paths"]!.members.values.flatMap { $0.members.values.compactMap { $0["operationId"]?.text } })
    }

    var usedOperations: Set<String> { used.withLock { $0 } }

    /// Checks an answer: whether this status is described for this request, and whether its body is of the schema.
    func check(
        _ method: String,
        _ path: String,
        _ answer: APIClient.Answer,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        func fail(_ message: String) {
            Issue.record("\(method) \(path) \(answer.status): \(message)", sourceLocation: sourceLocation)
        }
        let wanted = path.prefix { $0 != "?" }.split(separator: "/", omittingEmptySubsequences: false)
        let found = document["paths"]!.members.filter { template, _ in
            let parts = template.split(separator: "/", omittingEmptySubsequences: false)
            return parts.count == wanted.count && zip(parts, wanted).allSatisfy { $0.hasPrefix("{") || $0 == $1 }
        }
        let operation = found.compactMap { $0.value[method.lowercased()] }.first
        guard let operation else {
            // What is not described is not there.
            if answer.status != 404 && answer.status != 401 { fail("is not described") }
            return checkFailure(answer, fail)
        }
        let responses = operation["responses"]!
        guard let response = responses["\(answer.status)"] ?? responses["default"] else {
            return fail("has no description for this status")
        }
        if answer.status < 300, let name = operation["operationId"]?.text { used.withLock { _ = $0.insert(name) } }
        if answer.status >= 400 { checkFailure(answer, fail) }
        checkBody(answer, resolve(response), fail)
    }

    private func checkFailure(_ answer: APIClient.Answer, _ fail: (String) -> Void) {
        guard let body = try? JSONNode(answer.body) else { return fail("the failure is no JSON") }
        if body["error"]?["status"]?.integer != Int64(answer.status) { fail("the status in the body is another one") }
        guard let message = body["error"]?["message"]?.text, message.hasSuffix("."),
            message.first?.isLowercase == false
                || message.hasPrefix("“") || message.contains(" ")
        else { return fail("the message is no sentence") }
    }

    private func checkBody(_ answer: APIClient.Answer, _ response: JSONNode, _ fail: (String) -> Void) {
        guard let content = response["content"] else {
            if !answer.body.isEmpty { fail("there should be no body") }
            return
        }
        let type = (answer.headers["content-type"] ?? "").prefix { $0 != ";" }
        guard let media = content[String(type)] else { return fail("the type “\(type)” is not described") }
        guard type == "application/json" else { return }
        guard let body = try? JSONNode(answer.body) else { return fail("the body is no JSON") }
        check(body, media["schema"]!, "", fail)
    }

    /// Checks a value against one of the schemas.
    func check(_ value: JSONNode, schema name: String, sourceLocation: SourceLocation = #_sourceLocation) {
        check(value, document["components"]!["schemas"]![name]!, name) {
            Issue.record("\($0)", sourceLocation: sourceLocation)
        }
    }

    private func resolve(_ node: JSONNode) -> JSONNode {
        guard let reference = node["$ref"]?.text else { return node }
        return resolve(reference.dropFirst(2).split(separator: "/").reduce(document) { $0[String($1)]! })
    }

    private func check(_ value: JSONNode, _ schema: JSONNode, _ place: String, _ fail: (String) -> Void) {
        let schema = resolve(schema)
        if let type = schema["type"] {
            let types = type.text.map { [$0] } ?? type.elements.compactMap(\.text)
            if !types.contains(where: { isOf(value, $0) }) { return fail("\(place) is no \(types)") }
        }
        if let values = schema["enum"], !values.elements.contains(value) { fail("\(place) is \(value)") }
        if let number = value.number {
            if let least = schema["minimum"]?.number, number < least { fail("\(place) is \(number)") }
            if let most = schema["maximum"]?.number, number > most { fail("\(place) is \(number)") }
            if let limit = schema["exclusiveMinimum"]?.number, number <= limit { fail("\(place) is \(number)") }
        }
        if let text = value.text {
            if let pattern = schema["pattern"]?.text, text.range(of: pattern, options: .regularExpression) == nil {
                fail("\(place) is “\(text)”")
            }
            if schema["format"]?.text == "date-time",
                text.range(of: #"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"#, options: .regularExpression) == nil
            {
                fail("\(place) is no time: “\(text)”")
            }
            if let least = schema["minLength"]?.integer, text.count < least { fail("\(place) is too short") }
        }
        if let items = schema["items"] {
            for (index, element) in value.elements.enumerated() { check(element, items, "\(place)[\(index)]", fail) }
        }
        for name in schema["required"]?.elements.compactMap(\.text) ?? [] where value[name] == nil {
            fail("\(place).\(name) is missing")
        }
        let properties = schema["properties"]?.members ?? [:]
        for (name, member) in value.members {
            if let property = properties[name] {
                check(member, property, "\(place).\(name)", fail)
            } else if let additional = schema["additionalProperties"] {
                if additional.isTrue == false {
                    fail("\(place).\(name) is not described")
                } else {
                    check(member, additional, "\(place).\(name)", fail)
                }
            }
        }
    }

    private func isOf(_ value: JSONNode, _ type: String) -> Bool {
        switch (type, value) {
        case ("object", .object), ("array", .array), ("string", .string), ("boolean", .bool), ("integer", .integer),
            ("number", .integer), ("number", .number), ("null", .null):
            true
        default: false
        }
    }
}
#endif
