extension String {
    /// What came from a module or a guest, made fit for a terminal: one line, without control characters.
    package var printable: String {
        // Nearly always all of it.
        if utf8.allSatisfy({ (0x20...0x7e).contains($0) }) { return self }
        var text = ""
        for scalar in unicodeScalars {
            switch scalar.properties.generalCategory {
            case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse, .unassigned:
                text += scalar.escaped(asASCII: true)
            default:
                text.unicodeScalars.append(scalar)
            }
        }
        return text
    }
}
