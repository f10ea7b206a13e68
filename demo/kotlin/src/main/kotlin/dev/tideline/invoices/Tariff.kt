/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.invoices

import dev.tideline.core.Money
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.into
import dev.tideline.core.requireThat
import dev.tideline.core.sumOfMoney
import dev.tideline.core.then
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipKind

/** Describes a visit as far as the tariff cares about it. */
data class Visit(
    val ship: Ship,
    val stay: Span,
    val tugs: Int,
    val piloted: Boolean,
    val containersMoved: Int,
)

/** Charges one thing on an invoice. */
data class TariffLine(val label: String, val amount: Money)

/** Turns a visit into the lines that it is charged. */
fun interface TariffRule {
    fun listLines(visit: Visit): List<TariffLine>
}

/** Charges for each started day and for each metre of the ship. */
class QuayRule(private val perMetre: Money) : TariffRule {
    override fun listLines(visit: Visit): List<TariffLine> {
        val days = (visit.stay.minutes + MINUTES_PER_DAY - 1) / MINUTES_PER_DAY
        val amount = perMetre * visit.ship.length.raw * days.toDouble()
        return listOf(TariffLine("quay dues for $days days", amount))
    }

    private companion object {
        const val MINUTES_PER_DAY = 24 * 60L
    }
}

/** Charges for containers, at a lower price beyond each step. */
class ContainerRule(private val steps: List<Step>) : TariffRule {
    /** Sets the price of every container beyond the given number. */
    data class Step(val beyond: Int, val price: Money)

    override fun listLines(visit: Visit): List<TariffLine> =
        steps.sortedBy { it.beyond }.mapIndexedNotNull { index, step ->
            val end = steps.sortedBy { it.beyond }.getOrNull(index + 1)?.beyond ?: Int.MAX_VALUE
            val moved = minOf(visit.containersMoved, end) - step.beyond
            val label = "$moved containers at ${step.price}"
            TariffLine(label, step.price * moved.toDouble()).takeIf { moved > 0 }
        }
}

/** Charges for the pilot and for every tug. */
class ServiceRule(private val pilot: Money, private val tug: Money) : TariffRule {
    override fun listLines(visit: Visit): List<TariffLine> =
        buildList {
            if (visit.piloted) add(TariffLine("pilotage", pilot))
            if (visit.tugs > 0) add(TariffLine("${visit.tugs} tugs", tug * visit.tugs.toDouble()))
        }
}

/** Holds every rule of the harbour and the discounts that go with them. */
class Tariff(
    private val rules: List<TariffRule>,
    private val discounts: Map<ShipKind, Double> = emptyMap(),
) {
    /** Lists the lines for a visit, with the discount of its kind as the last one. */
    fun quote(visit: Visit): Outcome<List<TariffLine>> =
        requireThat(visit.stay > Span.ZERO, Reason.INVALID) { "${visit.ship.name} has not stayed at all" }
            .then {
                requireThat(visit.tugs >= 0 && visit.containersMoved >= 0, Reason.INVALID) {
                    "a visit cannot have negative services"
                }
            }
            .into { withDiscount(rules.flatMap { it.listLines(visit) }, visit.ship.kind) }

    private fun withDiscount(lines: List<TariffLine>, kind: ShipKind): List<TariffLine> {
        val share = discounts[kind] ?: return lines
        val total = lines.map { it.amount }.sumOfMoney()
        return lines + TariffLine("discount for $kind", total * -share)
    }
}
