/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

import kotlin.math.abs
import kotlin.math.pow
import kotlin.math.roundToLong

/** Measures a length, a depth or a height. */
@JvmInline
value class Metres(val raw: Double) : Comparable<Metres> {
    operator fun plus(other: Metres): Metres = Metres(raw + other.raw)

    operator fun minus(other: Metres): Metres = Metres(raw - other.raw)

    operator fun times(factor: Double): Metres = Metres(raw * factor)

    override fun compareTo(other: Metres): Int = raw.compareTo(other.raw)

    override fun toString(): String = "${raw.roundTo(2)} m"
}

/** Measures a mass, be it cargo, ballast or bollard pull. */
@JvmInline
value class Tonnes(val raw: Double) : Comparable<Tonnes> {
    operator fun plus(other: Tonnes): Tonnes = Tonnes(raw + other.raw)

    operator fun minus(other: Tonnes): Tonnes = Tonnes(raw - other.raw)

    operator fun times(factor: Double): Tonnes = Tonnes(raw * factor)

    override fun compareTo(other: Tonnes): Int = raw.compareTo(other.raw)

    override fun toString(): String = "${raw.roundTo(1)} t"
}

/** Measures a speed through water or of the wind. */
@JvmInline
value class Knots(val raw: Double) : Comparable<Knots> {
    operator fun times(factor: Double): Knots = Knots(raw * factor)

    override fun compareTo(other: Knots): Int = raw.compareTo(other.raw)

    override fun toString(): String = "${raw.roundTo(1)} kn"
}

/** Measures a volume of fuel or of slops. */
@JvmInline
value class Litres(val raw: Double) : Comparable<Litres> {
    operator fun plus(other: Litres): Litres = Litres(raw + other.raw)

    operator fun minus(other: Litres): Litres = Litres(raw - other.raw)

    override fun compareTo(other: Litres): Int = raw.compareTo(other.raw)

    override fun toString(): String = "${raw.roundTo(0)} l"
}

/** Counts an amount of money in cents, so that nothing is lost to rounding. */
@JvmInline
value class Money(val cents: Long) : Comparable<Money> {
    operator fun plus(other: Money): Money = Money(cents + other.cents)

    operator fun minus(other: Money): Money = Money(cents - other.cents)

    operator fun times(factor: Double): Money = Money((cents * factor).roundToLong())

    override fun compareTo(other: Money): Int = cents.compareTo(other.cents)

    override fun toString(): String {
        val sign = if (cents < 0) "-" else ""
        return "$sign${abs(cents) / 100}.${(abs(cents) % 100).toString().padStart(2, '0')} EUR"
    }

    companion object {
        val ZERO = Money(0)

        /** Makes an amount out of whole euros. */
        fun ofEuros(euros: Long): Money = Money(euros * 100)
    }
}

/** Adds up amounts of money. */
fun Iterable<Money>.sumOfMoney(): Money = fold(Money.ZERO) { sum, amount -> sum + amount }

/** Adds up masses. */
fun Iterable<Tonnes>.sumOfTonnes(): Tonnes = fold(Tonnes(0.0)) { sum, mass -> sum + mass }

/** Rounds to the given number of decimals. */
fun Double.roundTo(decimals: Int): Double {
    val scale = 10.0.pow(decimals)
    return (this * scale).roundToLong() / scale
}
