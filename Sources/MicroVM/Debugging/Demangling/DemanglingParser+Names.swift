/// Identifiers, and what makes them names of declarations.
extension DemanglingParser {
    private static let wordMaximum = 26

    /// `identifier`: a length and so many characters, in one of three ways.
    mutating func pushIdentifier(_ first: Unicode.Scalar) throws(Refusal) {
        var hasWords = false
        var isPunycode = false
        var length = Int(first.value - ("0" as Unicode.Scalar).value)
        if first == "0" {
            isPunycode = reader.skip("0")
            hasWords = !isPunycode
            length = 0
        }
        var text = ""
        repeat {
            while hasWords, case let letter? = reader.peek, letter.properties.isAlphabetic {
                let last = ("A"..."Z").contains(letter)
                let base: Unicode.Scalar = last ? "A" : "a"
                let index = Int(letter.value - base.value)
                guard index < words.count else { throw Refusal() }
                _ = try reader.next()
                text += words[index]
                hasWords = !last
            }
            if first == "0", reader.skip("0") { break }
            if first == "0" {
                length = try reader.natural()
            } else {
                while reader.isAtDigit, length <= Demangling.lengthMaximum {
                    length = length * 10 + Int(try reader.next().value - ("0" as Unicode.Scalar).value)
                }
            }
            guard length > 0 else { throw Refusal() }
            if isPunycode { _ = reader.skip("_") }
            let bytes = try reader.bytes(length)
            if isPunycode {
                text += try Punycode.decode(bytes)
            } else {
                text += String(decoding: bytes, as: UTF8.self)
                learnWords(bytes)
            }
            guard text.utf8.count <= Demangling.resultMaximum else { throw Refusal() }
        } while hasWords
        guard !text.isEmpty else { throw Refusal() }
        try pushSubstitutable(.identifier(text))
    }

    /// Words begin at capital letters and behind underscores, and have at least two characters.
    private mutating func learnWords(_ bytes: ArraySlice<UInt8>) {
        func isCapital(_ byte: UInt8) -> Bool { (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte) }
        func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }
        let underscore = UInt8(ascii: "_")
        var start: Int?
        for position in bytes.startIndex...bytes.endIndex {
            let byte = position < bytes.endIndex ? bytes[position] : underscore
            if let first = start, byte == underscore || isCapital(byte) && !isCapital(bytes[position - 1]) {
                if position - first >= 2, words.count < Self.wordMaximum {
                    words.append(String(decoding: bytes[first..<position], as: UTF8.self))
                }
                start = nil
            }
            if start == nil, byte != underscore, !isDigit(byte) { start = position }
        }
    }

    /// `o`: what the letters of the identifier before it stand for.
    mutating func operatorName() throws(Refusal) -> Node {
        guard let identifier = popIdentifier() else { throw Refusal() }
        var text = ""
        for scalar in identifier.unicodeScalars {
            let character: Unicode.Scalar
            switch scalar {
            case "a": character = "&"
            case "c": character = "@"
            case "d": character = "/"
            case "e": character = "="
            case "g": character = ">"
            case "l": character = "<"
            case "m": character = "*"
            case "n": character = "!"
            case "o": character = "|"
            case "p": character = "+"
            case "q": character = "?"
            case "r": character = "%"
            case "s": character = "-"
            case "t": character = "~"
            case "x": character = "^"
            case "z": character = "."
            default:
                guard !scalar.isASCII else { throw Refusal() }
                character = scalar
            }
            text.unicodeScalars.append(character)
        }
        switch try reader.next() {
        case "i": return .operatorName(text + " infix")
        case "p": return .operatorName(text + " prefix")
        case "P": return .operatorName(text + " postfix")
        default: throw Refusal()
        }
    }

    /// `L`: a name that is one of several, in a function, or in files of a module.
    mutating func discriminatedName() throws(Refusal) -> Node {
        if reader.skip("L") {
            guard let discriminator = popIdentifier() else { throw Refusal() }
            return .privateName(try popDeclarationName(), discriminator: discriminator)
        }
        if reader.skip("l") {
            guard let discriminator = popIdentifier() else { throw Refusal() }
            return .privateName(nil, discriminator: discriminator)
        }
        if let letter = reader.peek, ("a"..."j").contains(letter) || ("A"..."J").contains(letter) {
            _ = try reader.next()
            return .relatedName(String(letter), try popDeclarationName())
        }
        let index = try reader.index()
        return .localName(try popDeclarationName(), index: index)
    }

    mutating func pushNominal(_ kind: Node.Nominal) throws(Refusal) {
        let name = try popDeclarationName()
        try pushSubstitutable(.nominal(kind, context: try popContext(), name: name))
    }

    mutating func extensionContext() throws(Refusal) -> Node {
        let signature = popSignature()
        guard let module = popModule() else { throw Refusal() }
        return .extensionContext(module: module, type: try demand(where: \.isNominal), signature: signature)
    }

    /// `S`: modules and types of the standard library that have letters of their own.
    mutating func standardSubstitution() throws(Refusal) {
        if reader.skip("o") { return try push(.module("__C")) }
        if reader.skip("C") { return try push(.module("__C_Synthesized")) }
        if reader.skip("g") {
            let optional = StandardTypes.optional
            return try pushSubstitutable(.boundGeneric(optional, arguments: [try popType()]))
        }
        let count = reader.isAtDigit ? try reader.natural() : 1
        let isConcurrency = reader.skip("c")
        guard let type = StandardTypes.type(try reader.next(), isConcurrency: isConcurrency) else { throw Refusal() }
        for _ in 0..<max(count, 1) { try push(type) }
    }
}
